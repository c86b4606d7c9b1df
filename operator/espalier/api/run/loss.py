"""The losses that a run can train with."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import NonNegativeDecimal, Type, cel

Aggregation = Literal["TokenSum", "TokenMean", "SequenceMean", "Constant"]
RatioAnchor = Literal["Sampler", "Trainer"]
ImportanceLevel = Literal["Token", "Sequence"]
LossName = Literal["importance_sampling", "ppo", "cispo", "dro", "gspo", "cross_entropy"]

# The losses that multiply an advantage by a ratio; dro squares a distance instead.
OF_A_RATIO: tuple[LossName, ...] = ("importance_sampling", "ppo", "cispo", "gspo")


def level_of(name: str, given: ImportanceLevel | None) -> ImportanceLevel:
    """Whether a loss has a ratio for each token or one for a sequence, the default filled in."""
    return given or ("Sequence" if name == "gspo" else "Token")


class Loss(Type):
    """The loss by its Tinker wire name; thresholds are absolute ratios, not epsilons."""

    name: LossName = Field(
        description="name of the loss, as on Tinker's wire: importance_sampling, ppo, cispo, dro, "
        "gspo (one ratio for a whole sequence) or cross_entropy. A loss of your own needs driver "
        "Client and forward_backward_custom. Immutable."
    )
    clip_low: NonNegativeDecimal | None = Field(
        default=None,
        description="clipLow is the lowest ratio, a quoted decimal; ppo and gspo (default "
        '"0.8") and cispo (default "0") only.',
    )
    clip_high: NonNegativeDecimal | None = Field(
        default=None,
        description="clipHigh is the highest ratio, a quoted decimal; ppo and gspo (default "
        '"1.2") and cispo (default "4") only.',
    )
    beta: NonNegativeDecimal | None = Field(
        default=None, description='beta of dro, a quoted decimal (default "0.05").'
    )
    importance_level: ImportanceLevel | None = Field(
        default=None,
        description="importanceLevel of the ratio in importance_sampling, ppo and cispo: Token "
        "(each token its own; if unset) or Sequence (one for all of a sample, the geometric mean "
        'of its tokens\', as GSPO; set clipLow and clipHigh near 1, such as "0.9997" and '
        '"1.0004"). gspo is ppo with Sequence.',
    )
    aggregation: Aggregation = Field(
        default="TokenSum",
        description="aggregation of the losses of a step's tokens: TokenSum (their sum, as on "
        "Tinker), TokenMean (divided by the number of trained tokens), SequenceMean (the mean over "
        "samples of each one's mean) or Constant (their sum divided by the number of samples times "
        "aggregationConstant, as Dr. GRPO). The numbers are those of the whole step.",
    )
    aggregation_constant: int | None = Field(
        default=None,
        ge=1,
        le=10000000,
        description="aggregationConstant of aggregation Constant, for example sampling.maxTokens.",
    )
    entropy_coefficient: NonNegativeDecimal = Field(
        default="0",
        description="entropyCoefficient, a quoted decimal, times the entropy of the policy's whole "
        "next-token distribution is taken off the loss of each trained token.",
    )
    ratio_anchor: RatioAnchor = Field(
        default="Sampler",
        description="ratioAnchor says what the loss compares the policy with: Sampler (the "
        "sampler's log-probs, so the ratio is the whole importance weight) or Trainer (the "
        "trainer's own when it first saw the batch, before the first of its steps; "
        "offPolicyCorrection then weighs the rest).",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.aggregation == 'Constant' || !has(self.aggregationConstant)",
                "aggregationConstant belongs to aggregation Constant: remove it or choose Constant",
                ".aggregationConstant",
            ),
            (
                "self.aggregation != 'Constant' || has(self.aggregationConstant)",
                "aggregation Constant needs aggregationConstant: give a number of tokens, such as "
                "sampling.maxTokens",
                ".aggregationConstant",
            ),
            (
                "self.name != 'cross_entropy' || self.ratioAnchor == 'Sampler'",
                "cross_entropy compares with no log-probs: remove ratioAnchor or choose another "
                "loss",
                ".ratioAnchor",
            ),
            (
                "!has(self.importanceLevel) || self.importanceLevel == 'Token'"
                " || !(self.name in ['dro', 'cross_entropy'])",
                "dro and cross_entropy have no ratio: remove importanceLevel or choose another "
                "loss",
                ".importanceLevel",
            ),
            (
                "!has(self.importanceLevel) || self.importanceLevel == 'Sequence'"
                " || self.name != 'gspo'",
                "gspo has one ratio for a whole sequence: remove importanceLevel, or choose ppo",
                ".importanceLevel",
            ),
            (
                "self.name in ['ppo', 'cispo', 'gspo']"
                " || (!has(self.clipLow) && !has(self.clipHigh))",
                "clipLow and clipHigh belong to ppo, cispo and gspo: "
                "remove them or choose such a loss",
            ),
            (
                "self.name == 'dro' || !has(self.beta)",
                "beta belongs to dro: remove it or choose dro",
            ),
            (
                "!has(self.clipLow) || !has(self.clipHigh)"
                " || double(self.clipLow) <= double(self.clipHigh)",
                "clipLow must not be above clipHigh",
                ".clipLow",
            ),
        )
    )

    def config(self) -> dict[str, float]:
        """The loss_fn_config of the wire: Tinker's keys for this loss, set values only."""
        keys = {
            "ppo": ("clip_low_threshold", "clip_high_threshold"),
            "cispo": ("clip_low_threshold", "clip_high_threshold"),
            "gspo": ("clip_low_threshold", "clip_high_threshold"),
        }.get(self.name, ("", ""))
        values = ((keys[0], self.clip_low), (keys[1], self.clip_high), ("beta", self.beta))
        return {key: float(value) for key, value in values if value is not None}
