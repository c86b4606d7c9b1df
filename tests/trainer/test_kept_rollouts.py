"""What is kept of a step whose client sends no rollouts of its own, as HUD's does not."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from tests.trainer import tiny

from espalier.api.platform import TraceEnter, TraceExit
from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardRequest,
    ForwardResult,
)
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.engine.commands import Empty
from espalier.trainer.engine.engine import Engine

JOB = uuid.UUID(int=9).hex
GOOD, BAD, LATE, OTHER = (uuid.UUID(int=number).hex for number in range(1, 5))
SAMPLE = TrajectorySample(
    prompt_token_ids=[5, 6, 7], output_token_ids=[8, 9], output_logprobs=[-1.0, -2.0]
)


def rolled_out(engine: Engine, trace: str, job: str | None = JOB, **left: Any) -> None:
    engine.state.traces.enter(
        trace, TraceEnter(job_id=job, task_slug=f"task-{trace[-1]}", group_id="g")
    )
    engine.state.traces.add(trace, SAMPLE)
    engine.state.traces.exit(trace, TraceExit(**left))


def learn(engine: Engine, seq: int, *inputs: str | TrajectoryPayload) -> None:
    """A gradient of some trajectories: the first is right and the others are not."""
    wrong = TrajectoryPayload(samples=[SAMPLE], reward=0.0)
    request = ForwardBackwardRequest(inputs=[*inputs, wrong], group_size=len(inputs) + 1)
    tiny.send(engine, "forward-backward", engine.state.traces.resolve(request), ("s", seq))


def step(engine: Engine, seq: int, **changes: object) -> list[dict[str, Any]]:
    """The rows that lie beside the checkpoint of a step."""
    tiny.send(engine, "optim-step", tiny.optim_step(**changes), ("s", seq))
    stored = engine.state.store.open("checkpoint", engine.state.position.digest)
    lines = (stored.path / "rollouts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_step_keeps_text_reward_and_report_of_its_traces(engine: Engine) -> None:
    rolled_out(engine, GOOD, reward=1.0, stop_reason="done", metadata={"seed": 7})
    learn(engine, 1, GOOD)
    traced, inline = step(engine, 2)
    text = {
        "prompt": engine.state.detokenizer.text([5, 6, 7], special=True),
        "completion": _written(engine),
    }
    assert traced == {
        **text,
        **{"trace": GOOD, "task": "task-1", "group": "g", "job": JOB, "turns": 1, "tokens": 2},
        **{"reward": 1.0, "status": "completed", "stop_reason": "done"},
        **{"metadata": {"seed": 7}, "trained": True},
    }
    assert text["prompt"]
    assert inline == {**text, "turns": 1, "tokens": 2, "reward": 0.0, "trained": True}


def test_a_step_keeps_failed_traces_of_the_same_job_once(engine: Engine) -> None:
    rolled_out(engine, GOOD, reward=1.0, stop_reason="done")
    rolled_out(engine, BAD, status="error", error="the board is gone")
    rolled_out(engine, OTHER, job=uuid.UUID(int=10).hex, reward=0.5)
    engine.state.traces.enter(LATE, TraceEnter(job_id=JOB))
    learn(engine, 1, GOOD)
    rows = step(engine, 2)
    assert [(row.get("trace"), row["trained"]) for row in rows] == [
        *((GOOD, True), (None, True), (BAD, False))
    ]
    failed = rows[-1]
    assert (failed["status"], failed["error"]) == ("error", "the board is gone")
    assert failed["completion"] == _written(engine)

    # A trace that ends later is kept by the next step that learns from the job.
    engine.state.traces.exit(LATE, TraceExit(reward=0.0, stop_reason="timeout"))
    learn(engine, 3, GOOD)
    rows = step(engine, 4)
    assert [row.get("trace") for row in rows] == [GOOD, None, LATE]
    assert (rows[-1]["stop_reason"], rows[-1]["tokens"]) == ("timeout", 0)


def test_rollouts_that_the_client_sends_are_kept_unchanged(engine: Engine) -> None:
    rolled_out(engine, GOOD, reward=1.0)
    learn(engine, 1, GOOD)
    assert step(engine, 2, rollouts=[{"mine": 1}]) == [{"mine": 1}]


def test_a_step_that_shall_keep_none_keeps_none(engine: Engine) -> None:
    rolled_out(engine, GOOD, reward=1.0)
    learn(engine, 1, GOOD)
    assert step(engine, 2, keep_rollouts=False) == []


def test_the_tokens_of_a_clients_record_get_their_texts(engine: Engine) -> None:
    learn(engine, 1, TrajectoryPayload(samples=[SAMPLE], reward=1.0))
    (row,) = step(engine, 2, rollouts=[{"token_ids": [8, 9, 8], "logprobs": [-1.0, -2.0, -1.5]}])
    one, other = (engine.state.detokenizer.text([token], special=True) for token in (8, 9))
    assert one
    assert row["token_texts"] == [one, other, one]


@pytest.mark.parametrize("ids", [[10**9], [-1], ["8"], [True], [8] * 5000, "8", None])
def test_what_are_no_tokens_is_kept_as_it_is(engine: Engine, ids: Any) -> None:
    learn(engine, 1, TrajectoryPayload(samples=[SAMPLE], reward=1.0))
    assert step(engine, 2, rollouts=[{"token_ids": ids}]) == [{"token_ids": ids}]


def test_gradients_that_were_dropped_taught_nothing(engine: Engine) -> None:
    rolled_out(engine, GOOD, reward=1.0)
    learn(engine, 1, GOOD)
    tiny.send(engine, "zero-grad", Empty(), ("s", 2))
    learn(engine, 3, TrajectoryPayload(samples=[SAMPLE], reward=1.0))
    assert [row.get("trace") for row in step(engine, 4)] == [None, None]


def test_a_custom_loss_learns_from_its_forward(engine: Engine) -> None:
    request = ForwardRequest(inputs=tiny.trajectories(), group_size=3)
    answer = tiny.send(engine, "forward", request, ("s", 1))
    seen = ForwardResult.model_validate_json(answer.body)
    weights = [[1.0] * len(datum.logprobs) for datum in seen.data]
    tiny.send(
        engine, "backward", BackwardRequest(forward_id=seen.forward_id, weights=weights), ("s", 2)
    )
    rewards = [payload.reward for payload in tiny.trajectories()]
    assert [row["reward"] for row in step(engine, 3)] == rewards


def _written(engine: Engine) -> str | None:
    return engine.state.detokenizer.text([8, 9], special=False)
