"""When the Job of a run's runner is made, and when it is removed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from espalier.core.pods import pods
from espalier.core.run.run_view import RunView

# A runner that ended before its run did is replaced, and not more often than this.
RESTART_INTERVAL = timedelta(seconds=15)
# A runner whose sidecars keep its Job from counting failures is replaced without a limit.
KEPT_RESTART_INTERVAL = timedelta(seconds=60)
RunnerAction = Literal["Keep", "Create", "Delete"]


def action(
    view: RunView, now: str, *, drives: bool, frees: bool, over: bool
) -> tuple[RunnerAction, float | None]:
    """What to do with the Job, and in how many seconds to look again.

    Args:
        view: of the run.
        now: RFC 3339.
        drives: whether a runner may run.
        frees: whether none may.
        over: whether the run has taken all its steps.
    """
    job = view.runner
    if not view.driven or (job is not None and job.terminating):
        return "Keep", None
    if job is None:
        return ("Create" if drives else "Keep"), None
    kept = pods.outlived(view.runner_pods)
    if not job.finished:
        outdated = bool(job.pod) and job.pod != view.pod
        # Nothing but its sidecars runs on.
        if frees or outdated or (over and kept is not None):
            return "Delete", None
        if kept is None:
            return "Keep", None
    # A runner ends once the trainer has its last step: the commits that are not here yet follow.
    if not drives or view.trained is None or view.trained >= view.run.spec.steps:
        return "Keep", None
    wait = 0.0
    ended = job.completed or (kept.ended if kept is not None else "")
    if ended and job.generation >= view.run.metadata.generation:
        pause = RESTART_INTERVAL if job.finished else KEPT_RESTART_INTERVAL
        wait = (_time(ended) + pause - _time(now)).total_seconds()
    return ("Keep", wait) if wait > 0 else ("Delete", None)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
