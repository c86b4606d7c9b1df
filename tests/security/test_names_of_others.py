"""What one model's trainer gave out is worth nothing at another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.trainer import tiny
from tests.trainer.test_bad_input import PRIVATE, serving
from tests.trainer.test_bad_input import client as trainer
from tests.trainer.tiny import Volume

from espalier import identity
from espalier.api.wire.headers import IDEMPOTENCY_KEY

__all__ = ["trainer"]

OTHERS = "away/spell/trainer/uid-2"
TRACE = "1" * 32
SAMPLE = {"prompt_token_ids": [1, 2], "output_token_ids": [3], "output_logprobs": [-1.0]}


async def post(client: Any, audience: str, path: str, body: Any, key: str = "") -> Any:
    token = identity.issue(PRIVATE, "gateway", audience, 0)
    headers = {"Authorization": f"Bearer {token}"} | ({IDEMPOTENCY_KEY: key} if key else {})
    answer = await client.post(path, data=json.dumps(body), headers=headers)
    return answer.status, await answer.json()


async def test_a_forward_a_trace_and_a_key_mean_nothing_to_another_models_trainer(
    trainer: Any, volume: Volume, tmp_path: Path
) -> None:
    mine = "default/arith/trainer/uid-1"
    inputs = [t.model_dump(mode="json", exclude_none=True) for t in tiny.trajectories()]
    status, forward = await post(trainer, mine, "/train/forward", {"inputs": inputs}, "s/1")
    assert status == 200
    for path, body in (
        ("enter", {}),
        ("samples", SAMPLE),
        ("exit", {"reward": 1.0, "stop_reason": "done"}),
    ):
        assert (await post(trainer, mine, f"/traces/{TRACE}/{path}", body))[0] == 200
    weights = [[0.1] * len(datum["logprobs"]) for datum in forward["data"]]
    backward = {"forward_id": forward["forward_id"], "weights": weights}
    traced = {"inputs": [TRACE]}

    others = Volume(tmp_path / "others", volume.base)
    others.path.mkdir()
    (others.path / "bases").symlink_to(volume.path / "bases")
    policy = tiny.policy(others.path, others.base)
    async with serving(others, policy, "spell", OTHERS) as other:
        refused = [
            await post(other, OTHERS, "/train/backward", backward),
            await post(other, OTHERS, "/train/forward-backward", traced),
            await post(other, OTHERS, f"/traces/{TRACE}/exit", {"reward": 9.0}),
        ]
        told = [(status, problem["reason"]) for status, problem in refused]
        # The same key is a command of its own there, and never the answer that was given here.
        small = {"inputs": inputs[:3]}
        status, answer = await post(other, OTHERS, "/train/forward", small, "s/1")
    assert told == [(404, "ForwardNotFound"), (422, "InvalidRequest"), (404, "TraceNotFound")]
    assert (status, len(answer["data"])) == (200, 3)
    # Where they are known, both are taken.
    assert (await post(trainer, mine, "/train/backward", backward))[0] == 200
    assert (await post(trainer, mine, "/train/forward-backward", traced))[0] == 200
