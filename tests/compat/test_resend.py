"""HUD's client sends no keys: what was lost and comes again is applied once, by whoever died."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.compat.clients import NEWEST, OUT, drive, environment
from tests.compat.stage import TRAINER, Fault, Stage

pytestmark = pytest.mark.timeout(900)

BATCH = 2


async def cut(stage: Stage, _model: str) -> None:
    stage.relay.cut()


async def lose_answer(stage: Stage, _model: str) -> None:
    stage.relay.fall_silent()


async def kill_gateway(stage: Stage, _model: str) -> None:
    await stage.stop_gateway()
    await stage.start_gateway()


async def kill_trainer(stage: Stage, model: str) -> None:
    await stage.restart_trainer(model)


FAULTS = (
    Fault("connection lost after the command was applied", cut),
    Fault("answer acknowledged by a host between that lost its client", lose_answer),
    Fault("gateway died after the command was applied", kill_gateway),
    Fault("trainer died after the command was applied", kill_trainer),
    Fault("connection lost before the command was applied", cut, before=True),
    Fault("trainer died before the command was applied", kill_trainer, before=True),
)


async def test_a_lost_call_that_comes_again_is_applied_once_and_a_deliberate_one_again(
    stage: Stage, tmp_path: Path
) -> None:
    # Of every round the first batch and the step are struck, and sent again.
    struck = [[fault, None, None, fault, None] for fault in FAULTS]
    stage.faults = [entry for round_ in struck for entry in round_]
    variables = environment(stage.url, TRAINER, tmp_path)
    rounds = await drive(NEWEST, "resends", variables, model="arith", rounds=len(FAULTS))
    assert not stage.faults
    commits = stage.engine("arith").state.commits
    rows = [
        "| fault, at a batch and at a step | sent | batches applied | steps applied |",
        "|---|---|---|---|",
    ]
    for fault, (number, told), commit in zip(FAULTS, rounds, commits, strict=True):
        batches = commit.metrics["trajectories/trained"] / BATCH
        assert min(told["sent"][0], told["sent"][2]) >= 2, fault.name
        # The batch that was lost and the deliberate second one, however often they were sent.
        assert batches == 2, fault.name
        assert (told["step"], told["checkpoint"]) == (number + 1, commit.name)
        sent = f"{told['sent'][0]} + {told['sent'][1]} batches, {told['sent'][2]} steps"
        rows.append(f"| {fault.name} | {sent} | {batches:.0f} | 1 |")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "resend.md").write_text("\n".join(rows) + "\n")


async def test_a_whole_step_that_is_called_again_is_applied_once(
    stage: Stage, tmp_path: Path
) -> None:
    stage.faults = [None, FAULTS[0]]
    variables = environment(stage.url, TRAINER, tmp_path)
    ((_, told),) = await drive(NEWEST, "redone", variables, model="arith")
    assert told == {"sent": 2, "step": 1}
    (commit,) = stage.engine("arith").state.commits
    assert commit.metrics["trajectories/trained"] == BATCH
    assert stage.pending("arith") == 0
