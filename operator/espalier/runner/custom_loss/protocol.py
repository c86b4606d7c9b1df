"""What the process of a loss says: READY, and an Answer as one object of JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, FiniteFloat

from espalier.rewards.failure import Failure
from espalier.runner.scorer_spec import Line

METRICS_MOST = 8
# What the step itself has under loss/.
OWN_METRICS = frozenset({"custom", "sum"})
METRIC_PATTERN = r"^[a-z0-9_]{1,24}$"
# Said once nothing but the loss is left to do; what follows is not to be trusted.
READY = b"ready\n"


class Found(Line):
    """The loss, its derivative by each log-prob of each sample, and the user's metrics."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["Found"] = "Found"
    loss: float
    gradient: list[list[float]]
    metrics: dict[Annotated[str, Field(pattern=METRIC_PATTERN)], FiniteFloat] = Field(
        default_factory=dict, max_length=METRICS_MOST
    )


class Failed(Line):
    """Why there is none."""

    kind: Literal["Failed"] = "Failed"
    failure: Failure


Answer = Annotated[Found | Failed, Field(discriminator="kind")]
