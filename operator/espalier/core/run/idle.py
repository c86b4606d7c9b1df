"""When the trainer of a client-driven run is freed for want of calls, and taken back.

Whether it is called its trainer tells. Once the run is idle the gateway holds calls back and writes
for which idleness one waits (``status.wokenFor``), which ends it. No clocks are compared, and
neither the operator nor the gateway need be alive in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.core.run import turn as turns

IDLE = "Idle"
# From the status that says Idle to the end of the pod. By then every gateway holds calls back, and
# the trainer has told of the last that was under way.
SETTLE_SECONDS = 5.0


def limit(run: TrainingRun, model: TrainableModel | None) -> int:
    """After how many seconds without a call the run's trainer is freed; 0: never."""
    if model is None or run.spec.driver != "Client":
        return 0
    return model.spec.trainer.idle_seconds


def resting(run: TrainingRun) -> str | None:
    """Since when a run has been idle that no call waits for; None for any other."""
    since = run.status.idle_since
    return None if since == run.status.woken_for else since


def since(
    run: TrainingRun, model: TrainableModel | None, quiet_seconds: float | None, now: str
) -> str | None:
    """Since when the run whose turn it is has been idle; None: its trainer is needed.

    ``quiet_seconds`` are those since the trainer's last call, None where it was not asked.
    """
    most = limit(run, model)
    if not most:
        return None
    if quiet_seconds is None:
        return resting(run)
    return (resting(run) or now) if quiet_seconds >= most else None


def freed_in(runs: Sequence[TrainingRun], now: str) -> float | None:
    """Seconds until the trainer of a model may go, of whose runs the one in turn is idle."""
    run = turns.active(runs)
    idle = resting(run) if run is not None else None
    if idle is None:
        return None
    gone = datetime.fromisoformat(now) - datetime.fromisoformat(idle)
    return max(0.0, SETTLE_SECONDS - gone.total_seconds())
