"""The losses that a run can train with."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import (
    FUNCTION_PATTERN,
    DataKey,
    NonNegativeDecimal,
    ResourceName,
    Type,
    cel,
    explained,
)

Aggregation = Literal["TokenSum", "TokenMean", "SequenceMean", "Constant"]
RatioAnchor = Literal["Sampler", "Trainer"]
ImportanceLevel = Literal["Token", "Sequence"]
BuiltInLoss = Literal["importance_sampling", "ppo", "cispo", "dro", "gspo", "cross_entropy"]
LossName = Literal[BuiltInLoss, "Custom"]

# The losses that multiply an advantage by a ratio; dro squares a distance instead.
OF_A_RATIO: tuple[BuiltInLoss, ...] = ("importance_sampling", "ppo", "cispo", "gspo")


def level_of(name: str, given: ImportanceLevel | None) -> ImportanceLevel:
    """Whether a loss has a ratio for each token or one for a sequence, the default filled in."""
    return given or ("Sequence" if name == "gspo" else "Token")


class CustomRef(Type):
    """A function of a module in a ConfigMap, called in a sandbox."""

    name: ResourceName = Field(description="name of the ConfigMap in the run's namespace.")
    key: DataKey = Field(
        default="loss.py",
        description="key of the ConfigMap that holds the module. The module is read when the "
        "runner starts, and after an edit of customRef.",
    )
    function: str = Field(
        default="loss",
        description="function of the module that is called with (data, logprobs) once for each "
        "optimizer step, and gives the loss, or (loss, metrics). logprobs are the policy's, an "
        "array for each sample, and are differentiated with autograd: compute with autograd.numpy. "
        "data has for each sample sampling_logprobs, advantages, mask, reward, traj_idx, "
        "group_idx, logprobs as constants, and under kl.reference reference_logprobs.",
        max_length=64,
        json_schema_extra=explained(FUNCTION_PATTERN, "must be the name of a Python function"),
    )


class Loss(Type):
    """The loss by its Tinker wire name, or Custom; thresholds are absolute ratios, not epsilons."""

    name: LossName = Field(
        description="name of the loss, as on Tinker's wire: importance_sampling, ppo, cispo, dro, "
        "gspo (one ratio for a whole sequence) or cross_entropy; or Custom, a function of yours. "
        "Immutable."
    )
    custom_ref: CustomRef | None = Field(
        default=None,
        description="customRef names the function of Custom. It runs without network, token and "
        "files, a process for each step, with 1 GiB of memory.",
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
                "(self.name == 'Custom') == has(self.customRef)",
                "Custom needs customRef, which belongs to it: name the ConfigMap of your function, "
                "or choose another loss and remove customRef",
                ".customRef",
            ),
            (
                "self.name != 'Custom' || self.aggregation == 'TokenSum'",
                "the function of Custom adds up its loss itself: remove aggregation",
                ".aggregation",
            ),
            (
                "self.name != 'Custom' || double(self.entropyCoefficient) == 0.0",
                "the function of Custom gets log-probs of sampled tokens alone, and no entropy is "
                "added to its loss: remove entropyCoefficient",
                ".entropyCoefficient",
            ),
            (
                "self.name != 'Custom' || self.ratioAnchor == 'Sampler'",
                "the function of Custom compares what it likes, and gets the sampler's log-probs: "
                "remove ratioAnchor",
                ".ratioAnchor",
            ),
            (
                "!has(self.importanceLevel) || self.importanceLevel == 'Token'"
                " || !(self.name in ['dro', 'cross_entropy', 'Custom'])",
                "dro, cross_entropy and Custom have no ratio: remove importanceLevel or choose "
                "another loss",
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
