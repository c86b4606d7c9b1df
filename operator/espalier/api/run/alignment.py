"""How far the log-probs of trainer and sampler may be apart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from espalier.api.meta import PositiveDecimal, Type


class LogprobAlignment(Type):
    """What a run does when its trainer and its samplers disagree."""

    mismatch_kl_threshold: PositiveDecimal = Field(
        default="0.01",
        alias="mismatchKLThreshold",
        description="mismatchKLThreshold is the highest policy/mismatch_kl of a step, in nats per "
        "token, at which the condition LogprobsAligned is True.",
    )
    on_misaligned: Literal["Warn", "Pause"] = Field(
        default="Warn",
        description="onMisaligned says whether a run above the threshold goes on (Warn), or is "
        "held until the threshold is raised or this is Warn (Pause).",
    )
