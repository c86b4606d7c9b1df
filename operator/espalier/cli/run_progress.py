"""The progress of a run, for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from espalier.api.meta import Condition, decimal
from espalier.api.metric_names import STEP_REWARD
from espalier.api.trainingrun import TrainingRun
from espalier.core.run.progress import remaining_seconds


@dataclass(frozen=True)
class Standing:
    """A run at one moment.

    Attributes:
        step: done, of ``steps``.
        reward: mean of the samples for the latest step; None before the first.
        remaining: estimated seconds; None when unknown.
        end: Succeeded or Stalled once the run has ended so; None while it goes on.
        reason: of the condition that says most; ``message`` is its message.
    """

    step: int
    steps: int
    reward: float | None
    remaining: int | None
    end: Literal["Succeeded", "Stalled"] | None
    reason: str
    message: str

    def line(self) -> str:
        """One line of text."""
        parts = [f"step {self.step}/{self.steps}"]
        if self.reward is not None:
            parts.append(f"reward {self.reward:.3f}")
        if self.remaining is not None and self.end is None:
            parts.append(f"about {self.remaining // 60}:{self.remaining % 60:02} left")
        parts.append(f"{self.reason}: {self.message}" if self.message else self.reason)
        return "  ".join(part for part in parts if part)


def standing(run: TrainingRun, now: datetime | None = None) -> Standing:
    """Reads a run's status; a condition of an older spec does not end the run.

    What remains is counted from ``now`` (None: this moment), however old the status is.
    """
    status = run.status
    current = status.observed_generation >= run.metadata.generation
    conditions = {condition.type: condition for condition in status.conditions}
    end: Literal["Succeeded", "Stalled"] | None = None
    if current and _is_true(conditions.get("Succeeded")):
        end = "Succeeded"
    elif current and _is_true(conditions.get("Stalled")):
        end = "Stalled"
    shown = conditions.get(end or _telling(conditions))
    return Standing(
        step=status.step,
        steps=run.spec.steps,
        reward=next((decimal(m.value) for m in status.metrics if m.name == STEP_REWARD), None),
        remaining=remaining_seconds(status.progress, now or datetime.now(UTC)),
        end=end,
        reason=shown.reason if shown else "Pending",
        message=shown.message if shown else "",
    )


def _telling(conditions: dict[str, Condition]) -> str:
    """The condition that explains why the run does not train, else Ready."""
    for name in ("Suspended", "Reconciling"):
        if _is_true(conditions.get(name)):
            return name
    return "Ready"


def _is_true(condition: Condition | None) -> bool:
    return condition is not None and condition.status == "True"
