"""What a gradient command optimizes beside its loss_fn, as on the wire. All ours, not HUD's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from espalier.api.meta import decimal
from espalier.api.run import kl as run_kl
from espalier.api.run.kl import KlEstimator, KlPlacement
from espalier.api.run.loss import Aggregation, ImportanceLevel, RatioAnchor
from espalier.api.run.off_policy_correction import CorrectionMode, OffPolicyCorrection

Real = Annotated[float, Strict()]
DEFAULT_MAX_RATIO = 2.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Correction(_Part):
    """The off-policy correction: a weight of each token or sequence.

    ``max_ratio`` None is 2, ``min_ratio`` None is 0; only a mask has a ``min_ratio``.
    """

    mode: CorrectionMode = "None"
    max_ratio: Real | None = Field(default=None, gt=0)
    min_ratio: Real | None = Field(default=None, ge=0)

    @classmethod
    def of(cls, given: OffPolicyCorrection) -> Correction:
        """As a run gives it."""
        high, low = given.max_ratio, given.min_ratio
        return cls(
            mode=given.mode,
            max_ratio=None if high is None else decimal(high),
            min_ratio=None if low is None else decimal(low),
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest ratio, defaults filled in."""
        high = DEFAULT_MAX_RATIO if self.max_ratio is None else self.max_ratio
        return self.min_ratio or 0.0, high

    @property
    def text(self) -> str:
        """The correction in words, defaults filled in."""
        low, high = self.bounds
        if self.mode == "None":
            return "None"
        limits = f"{low:g} to {high:g}" if self.mode.endswith("Mask") else f"at most {high:g}"
        return f"{self.mode} ({limits})"


class Kl(_Part):
    """The penalty on the distance from a reference policy; off without a ``reference``.

    ``estimator`` None is K1 in the advantages and K3 in the loss. ``checkpoint`` is the name of the
    one that reference Checkpoint is.
    """

    coefficient: Real = Field(default=0.0, ge=0)
    placement: KlPlacement = "Advantage"
    estimator: KlEstimator | None = None
    discount: Real = Field(default=0.0, ge=0, le=1)
    reference: Literal["Base", "Checkpoint"] | None = None
    checkpoint: Annotated[str, Field(min_length=1, max_length=63)] | None = None

    @classmethod
    def of(cls, given: run_kl.Kl) -> Kl:
        """As a run gives it."""
        reference = given.reference
        named = None if reference is None else reference.checkpoint_ref
        return cls(
            coefficient=decimal(given.coefficient),
            placement=given.placement,
            estimator=given.estimator,
            discount=decimal(given.discount),
            reference=None if reference is None else "Checkpoint" if named else "Base",
            checkpoint=named.name if named else None,
        )

    @property
    def estimates(self) -> KlEstimator:
        """The estimator, its default filled in."""
        return self.estimator or ("K1" if self.placement == "Advantage" else "K3")

    @property
    def text(self) -> str:
        """The penalty in words, defaults filled in."""
        settings = f"{self.coefficient:g} {self.estimates} in {self.placement}"
        reference = self.checkpoint or self.reference
        return f"{settings}, discount {self.discount:g}, reference {reference}"


class Objective(_Part):
    """How the losses of tokens add up to a step, and what is added to them.

    A step's gradient is the sum over its tokens (TokenSum, Tinker's), that sum divided by the
    number of tokens (TokenMean), the mean over sequences of each one's mean (SequenceMean), or the
    sum divided by ``aggregation_constant`` times the number of sequences (Constant). Numbers are of
    the whole step: of all its calls and ranks. A sequence is one sample.

    ``importance_level`` Sequence gives every token the geometric mean of its sequence's ratios;
    None is Token, and Sequence for gspo.

    With ``ratio_anchor`` Trainer the loss compares with the sample's ``anchor_logprobs``, or
    without them with the log-probs of this very call, and the sampler's matter to ``correction``
    alone. ``entropy_coefficient`` times the entropy of the distribution of each trained token is
    taken off the loss.
    """

    aggregation: Aggregation = "TokenSum"
    aggregation_constant: Annotated[int, Strict(), Field(ge=1)] | None = None
    importance_level: ImportanceLevel | None = None
    ratio_anchor: RatioAnchor = "Sampler"
    correction: Correction = Correction()
    kl: Kl = Kl()
    entropy_coefficient: Real = Field(default=0.0, ge=0)
