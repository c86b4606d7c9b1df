"""What a step that was taken adds to the runner's series."""

from __future__ import annotations

from espalier.loop.steps import Taken
from espalier.runner import prometheus
from espalier.runner.group_sampling import Outcome, Skipped

PHASES = ("sampling", "reward", "training", "commit", "swap", "idle")
TOKENS = "completion/tokens_total"


def count(taken: Taken[Outcome]) -> None:
    """Adds a step, its time by phase, and its groups by what came of them.

    Further steps of the same batch add their time alone: its groups are those of the first.
    """
    attempt = taken.attempt
    prometheus.STEPS.inc()
    for phase in PHASES:
        prometheus.PHASES.labels(phase).inc(attempt.seconds.get(f"time/{phase}_seconds", 0.0))
    if not attempt.groups:
        return
    too_long = sum(isinstance(one, Skipped) for one in attempt.groups)
    trained = len(attempt.trained)
    prometheus.GROUPS.labels("too_long").inc(too_long)
    prometheus.GROUPS.labels("trained").inc(trained)
    prometheus.GROUPS.labels("dropped").inc(len(attempt.groups) - too_long - trained)
    prometheus.TOKENS.inc(taken.request.metrics.get(TOKENS, 0.0))
