"""How a run is held near a reference policy."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import NonNegativeDecimal, ObjectRef, Type, cel

KlPlacement = Literal["Advantage", "Loss"]
KlEstimator = Literal["K1", "K2", "K3"]


class KlBase(Type):
    """The model's base, which is its policy with the adapter switched off."""


class KlReference(Type):
    """The policy that a run is held near; exactly one of its fields."""

    base: KlBase | None = Field(
        default=None,
        description="base is the model's base: the adapter is switched off for one more forward "
        "pass, and no second copy is loaded. Not for adapter.type Full.",
    )
    checkpoint_ref: ObjectRef | None = Field(
        default=None,
        description="checkpointRef names a Checkpoint of the model, or of another on its volume "
        "with the same base, rank and alpha: the trainer loads its adapter, frozen, beside the one "
        "it trains. Its bytes stay while the run names it. A trainer that is up restarts before a "
        "run that names another model's, for it sees no other. Not for adapter.type Full.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.base) != has(self.checkpointRef)",
                "set exactly one of base and checkpointRef",
            )
        )
    )


class Kl(Type):
    """A penalty on the distance from a reference policy, KL(policy || reference)."""

    coefficient: NonNegativeDecimal = Field(
        default="0",
        description='coefficient of the penalty, a quoted decimal. "0" with a reference only '
        "measures policy/reference_kl.",
    )
    placement: KlPlacement = Field(
        default="Advantage",
        description="placement is Advantage (each token's advantage grows by coefficient times the "
        "mean estimate of the forward-backward minus its own, of the sampler's log-probs) or Loss "
        "(coefficient times the estimate is added to each token's loss, and differentiated).",
    )
    estimator: KlEstimator | None = Field(
        default=None,
        description="estimator of a token, with d the policy's minus the reference's log-prob: K1 "
        "(d; the default in Advantage), K2 (d*d/2) or K3 (exp(-d) - 1 + d; the default in Loss).",
    )
    discount: NonNegativeDecimal = Field(
        default="0",
        description='discount of placement Advantage, from "0" to "1": a token also answers for '
        "the penalties of the later tokens of its sample, discounted by their distance.",
    )
    reference: KlReference | None = Field(
        default=None, description="reference policy. Needed by a coefficient above 0."
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "double(self.coefficient) == 0.0 || has(self.reference)",
                "a coefficient above 0 needs a reference: give reference: {base: {}}, or name a "
                "checkpointRef in it",
                ".reference",
            ),
            (
                "self.placement != 'Loss' || !has(self.estimator) || self.estimator != 'K1'",
                "estimator K1 in the Loss pulls nowhere, since the mean of its gradient is zero: "
                "choose K2 or K3, or placement Advantage",
                ".estimator",
            ),
            (
                "double(self.discount) <= 1.0",
                'discount must be from "0" to "1", such as "0.9"',
                ".discount",
            ),
            (
                "self.placement != 'Loss' || double(self.discount) == 0.0",
                "discount belongs to placement Advantage: remove it or choose Advantage",
                ".discount",
            ),
        )
    )
