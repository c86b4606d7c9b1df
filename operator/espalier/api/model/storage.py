"""Where a model's bases and checkpoints are kept."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Name, Type


class ClaimStorage(Type):
    """The claim that holds bases and checkpoints."""

    claim_name: Name = Field(
        description="claimName of a claim that trainer and rollout pods can mount together."
    )


class ScrubSpec(Type):
    """How often, and how fast, what is stored is read through and compared with its digests."""

    interval_hours: int = Field(
        default=168,
        ge=0,
        le=8760,
        description="intervalHours from the end of a scrub to the next; 0 turns it off, but for a "
        "scrub that the annotation espalier.dev/scrub asks for.",
    )
    mebibytes_per_second: int = Field(
        default=64,
        ge=1,
        le=10000,
        description="mebibytesPerSecond that a scrub reads at most.",
    )


class Storage(Type):
    """Where bases and checkpoints are kept."""

    persistent_volume_claim: ClaimStorage = Field(
        description="persistentVolumeClaim holds bases and checkpoints."
    )
    scrub: ScrubSpec = Field(
        default_factory=ScrubSpec,
        description="scrub finds bytes that rotted or are gone, and names them in the conditions "
        "of model and Checkpoints.",
    )
