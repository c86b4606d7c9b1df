"""When a client-driven run's trainer is freed, and what takes it back."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import LATER, NOW, head, model, pins, run
from tests.core.run_views import SERVED, said

from espalier.core.run import idle
from espalier.core.run import run as runs
from espalier.core.run.run import RunDecision, RunView

MODEL = model(trainer={"idleSeconds": 60})
RESTING = {"idleSince": NOW}
WOKEN = {"idleSince": NOW, "wokenFor": NOW}


def decided(status: Any = None, **changes: Any) -> RunDecision:
    subject = changes.pop("run", run(driver="Client", taskset=None, status=status))
    facts: dict[str, Any] = {
        "run": subject,
        "model": MODEL,
        "head": head(status=SERVED),
        "siblings": [subject],
        "assigned": True,
    }
    return runs.decide(RunView(**{**facts, **changes}), LATER)


# what the status said, how long the trainer was quiet; idle since, reason of Ready
CASES: dict[str, tuple[Any, float | None, str | None, str]] = {
    "called a moment ago": (None, 59.9, None, "AwaitingClient"),
    "not called for long": (None, 60.0, LATER, "Idle"),
    "not asked": (None, None, None, "AwaitingClient"),
    "still not called": (RESTING, 90.0, NOW, "Idle"),
    "called while its pod was on its way out": (RESTING, 3.0, None, "AwaitingClient"),
    "freed, so that nobody can be asked": (RESTING, None, NOW, "Idle"),
    "freed, and a call waits": (WOKEN, None, None, "AwaitingClient"),
    "idle again after a call": ({"wokenFor": NOW}, 60.0, LATER, "Idle"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_run_is_idle_while_nobody_calls(
    case: tuple[Any, float | None, str | None, str],
) -> None:
    status, quiet, since, reason = case
    decision = decided(status, quiet=quiet)
    assert decision.status.idle_since == since
    assert said(decision, "Ready") == f"True/{reason}"
    # What the gateway wrote is kept: it owns it.
    assert decision.status.woken_for == (status or {}).get("wokenFor")


@pytest.mark.parametrize(
    "changes",
    [
        {"run": run()},
        {"model": model(trainer={"idleSeconds": 0})},
        {"run": run(driver="Client", suspend=True, status=RESTING)},
        {"run": run(driver="Client", status={**RESTING, "step": 10})},
        {
            "head": head(
                status={
                    **SERVED,
                    "agreed": pins(2, "m-000001", "Pause"),
                }
            )
        },
    ],
    ids=["a runner's", "kept for ever", "suspended", "done", "paused by its head"],
)
def test_such_a_run_is_never_idle(changes: Any) -> None:
    assert decided(quiet=10_000.0, **changes).status.idle_since is None


def test_a_trainer_goes_only_once_every_gateway_knows() -> None:
    resting = run(driver="Client", status=RESTING)
    assert idle.freed_in([resting], NOW) == idle.SETTLE_SECONDS
    assert idle.freed_in([resting], LATER) == 0
    assert idle.freed_in([run(driver="Client", status=WOKEN)], LATER) is None
    assert idle.freed_in([run(driver="Client")], LATER) is None
    assert idle.freed_in([], LATER) is None
