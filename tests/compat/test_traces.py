"""Rollouts that HUD's own agent samples through the gateway, reported and trained on by id."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from tests.compat.clients import NEWEST, drive, environment
from tests.compat.stage import TRAINER, Stage

pytestmark = pytest.mark.timeout(900)


async def test_a_trace_id_stands_for_the_tokens_and_the_reward_of_its_rollout(
    stage: Stage, tmp_path: Path
) -> None:
    variables = environment(stage.url, TRAINER, tmp_path)
    told = dict(await drive(NEWEST, "traces", variables, model="arith"))
    assert told["sample"] == [True, True]
    # The second turn asks for the exact tokens of the first to be continued.
    second = stage.sampled[1]
    prompt, output = told["continued"]
    assert (second["prompt_token_ids"], second["continuation_from"]) == (prompt + output, 2)
    # Both turns of a trace, in its place among inline trajectories.
    rewards = [(0, 0, 1.0), (0, 0, 1.0), (1, 0, 0.5), *[(2, 1, 0.5)] * 2, *[(3, 1, 0.25)] * 2]
    assert [tuple(item[:3]) for item in told["mixed"]] == rewards
    assert told["trained"] == 8
    # What the first checkpoint got, by id and inline; the second one was not sampled yet.
    assert told["rewards"] == [["arith-000001", 0.75], ["arith-000002", None]]
    status, said = told["interleaved"]
    assert status == 422
    assert "inputs[1]: is of group b, and inputs[0] of group a" in said
    status, said = told["timed out"]
    assert status == 422
    assert "was timed out, and such runs are never trained on implicitly" in said
    status, said = told["unknown"]
    assert status == 422
    assert "is unknown to this model's trainer" in said
    headers = {"Authorization": f"Bearer {TRAINER}"}
    url = f"{stage.url}/v2/trace/{told['trace']}"
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as reply:
        record = await reply.json()
    assert record["job"] == {"name": "arithmetic", "group": 2}
    assert (record["enter"]["task_slug"], record["enter"]["group_id"]) == ("task-a", "a")
    left = record["exit"]
    assert (left["status"], left["reward"], left["stop_reason"]) == ("completed", 1.0, "done")
    assert left["metadata"] == {"seed": 7}
    assert len(record["samples"]) == 2


async def test_a_rollout_that_hangs_is_ended_in_a_named_phase_and_its_group_is_not_trained_on(
    stage: Stage, tmp_path: Path
) -> None:
    variables = environment(stage.url, TRAINER, tmp_path)
    told = await drive(NEWEST, "hung", variables, model="arith")
    (_, good), (late, bad), (_, by_run), (_, by_id) = told
    assert good == ["completed", "done", 1.0]
    assert bad[:2] == ["error", "timeout"]
    assert "timed-out runs require an explicit" in by_run
    phase = "rollout timed out after 300s during grading"
    assert f"inputs[1]: trace {late} was timed out ({phase})" in by_id
    assert stage.pending("arith") == 0
