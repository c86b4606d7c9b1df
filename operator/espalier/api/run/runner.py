"""How the runner's pod runs."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Type
from espalier.api.podtemplate import PodTemplate


class RunnerSpec(Type):
    """How the runner's pod runs."""

    template: PodTemplate | None = Field(default=None, description="template of the runner's pod.")
    backoff_limit: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="backoffLimit is how often the runner is started again after it failed, before "
        "the run fails; 20 if unset. Eviction, preemption and the loss of a node do not count.",
    )
