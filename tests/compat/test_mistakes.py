"""What a wrong client sends: a status and a sentence that it shows, and no gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.compat.clients import NEWEST, OUT, drive, environment
from tests.compat.stage import MAX_BODY_BYTES, OTHER, READER, REVOKED, TRAINER, Stage

pytestmark = pytest.mark.timeout(900)

# Error class, status, and a part of the sentence. Without a status the client itself refuses.
SEEN: dict[str, tuple[str, int | None, str]] = {
    "unknown model": ("ValueError", None, "Model 'arth' not found"),
    "another namespace's model": ("HudRequestError", 404, "no model"),
    "a revoked token": ("HudRequestError", 401, "the API server does not accept the token"),
    "wrong lengths": ("HudRequestError", 422, "inputs[0].samples[0].output_logprobs"),
    "NaN reward": ("HudRequestError", None, "not JSON compliant"),
    "no output tokens": ("HudRequestError", 422, "inputs[0].samples[0].output_token_ids"),
    "token out of range": ("HudRequestError", 422, "inputs[0].samples[0].output_token_ids"),
    "part of a group": ("ValueError", None, "do not divide evenly into groups of 2"),
    "an image": ("HudRequestError", 422, "samples[0].prompt_chunks: only text is trained"),
    "a timed-out run": ("ValueError", None, "timed-out runs require an explicit"),
    "an unknown trace": ("HudRequestError", 422, "inputs[0]: trace"),
    "unknown loss": ("HudRequestError", 422, "loss_fn 'reinforce'"),
    "unknown loss parameter": ("HudRequestError", 422, "epsilom"),
    "huge body": ("HudRequestError", 413, "exceed the limit"),
    "unknown forward": ("HudRequestError", 404, "forward_id 'forward-99' is unknown"),
    "step without gradients": ("HudRequestError", 409, "no gradients were accumulated"),
    "a step on equal rewards alone": (
        "HudRequestError",
        409,
        "zero-grad drops what is accumulated",
    ),
    "head at an unknown checkpoint": ("HudRequestError", 404, "has no checkpoint 'arith-000009'"),
}


async def test_the_client_shows_what_is_wrong_and_nothing_is_applied(
    stage: Stage, tmp_path: Path
) -> None:
    await stage.model("secret", OTHER)
    variables = environment(stage.url, TRAINER, tmp_path)
    foreign = stage.uid("secret", OTHER)
    told = dict(
        await drive(
            *(NEWEST, "mistakes", variables), model="arith", foreign=foreign, revoked=REVOKED
        )
    )
    rows = ["| mistake | error | status | sentence |", "|---|---|---|---|"]
    for name, (error, status, sentence) in SEEN.items():
        assert told[name][:2] == [error, status], (name, told[name])
        assert sentence in told[name][2], (name, told[name])
        rows.append(f"| {name} | {error} | {status or 'refused by the client'} | {told[name][2]} |")
    assert told.keys() == SEEN.keys()
    # Only the batch of equal rewards was accumulated, with a gradient of zero.
    (flat,) = stage.engine("arith").state.tallies
    assert (flat.zero_gradient, flat.tokens, stage.steps("arith")) == (2, 2, 0)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "mistakes.md").write_text("\n".join(rows) + "\n")


SAMPLE = {"prompt_token_ids": [1], "output_token_ids": [2, 3], "output_logprobs": [-1.0, -1.0]}
TRAJECTORY = {"samples": [SAMPLE], "reward": 1.0}


def batch(trajectory: dict[str, Any] | None = None, **fields: Any) -> str:
    return json.dumps({"inputs": [TRAJECTORY, {**TRAJECTORY, **(trajectory or {})}], **fields})


def samples(**changes: Any) -> dict[str, Any]:
    return {"samples": [{**SAMPLE, **changes}]}


FB, STEP = "/v1/models/arith/train/forward-backward", "/v1/models/arith/train/optim-step"
RAW: dict[str, tuple[str, str, str, int, str]] = {
    # name: path, body, token, status, part of the sentence
    "unknown model": (FB.replace("arith", "nix"), batch(), TRAINER, 404, "no model 'nix'"),
    "another namespace's model": (
        *(FB.replace("arith", f"{OTHER}/secret"), batch(), TRAINER, 404),
        "no model",
    ),
    "no token": (FB, batch(), "", 401, "carries no bearer token"),
    "a revoked token": (FB, batch(), REVOKED, 401, "does not accept the token"),
    "one who may only read": (FB, batch(), READER, 403, "bob may not update trainingruns"),
    "not JSON": (FB, "{", TRAINER, 422, "body"),
    "no inputs": (FB, '{"inputs": []}', TRAINER, 422, "inputs"),
    "an unknown field": (FB, batch(gamma=1), TRAINER, 422, "gamma"),
    "an unknown field of a sample": (FB, batch(samples(mask=[])), TRAINER, 422, "mask"),
    "wrong lengths": (FB, batch(samples(output_logprobs=[-1.0])), TRAINER, 422, "inputs[1]"),
    "NaN": (FB, batch({"reward": float("nan")}), TRAINER, 422, "inputs[1].reward"),
    "text for a number": (FB, batch({"reward": "1"}), TRAINER, 422, "inputs[1].reward"),
    "no samples": (FB, batch({"samples": []}), TRAINER, 422, "inputs[1].samples"),
    "empty samples": (
        *(FB, batch(samples(output_token_ids=[], output_logprobs=[])), TRAINER, 422),
        "inputs[1].samples[0].output_token_ids",
    ),
    "part of a group": (FB, batch(group_size=3), TRAINER, 422, "group_size"),
    "groups of none": (FB, batch(group_size=0), TRAINER, 422, "group_size"),
    "a trace that is none": (FB, '{"inputs": ["trace-1"]}', TRAINER, 422, "inputs[0]: trace"),
    "huge body": (FB, batch() + " " * MAX_BODY_BYTES, TRAINER, 413, "exceed the limit"),
    "a learning rate of 0": (STEP, '{"learning_rate": 0}', TRAINER, 422, "learning_rate"),
    "no gradients": (STEP, '{"learning_rate": 1}', TRAINER, 409, "no gradients"),
    "a fork without a name": (
        *("/v2/models/fork", '{"source_model_id": "arith"}', TRAINER, 422),
        "name: Field required",
    ),
    "a fork of nothing": (
        *("/v2/models/fork", '{"source_model_id": "nix", "name": "a"}', TRAINER, 404),
        "no model 'nix'",
    ),
    "a fork by one who may only read": (
        *("/v2/models/fork", '{"source_model_id": "arith", "name": "a"}', READER, 403),
        "bob may not create checkpointheads",
    ),
    "a report that nobody keeps": (
        *(f"/v2/trace/{'0' * 32}/exit", '{"reward": 1.0}', TRAINER, 404),
        "is unknown here",
    ),
    "a report with a NaN": (
        *(f"/v2/trace/{'0' * 32}/exit", '{"reward": NaN}', TRAINER, 422),
        "reward",
    ),
}


async def test_every_mistake_on_the_wire_is_named_and_nothing_is_applied(stage: Stage) -> None:
    await stage.model("secret", OTHER)
    async with aiohttp.ClientSession() as session:
        for name, (path, body, token, status, sentence) in RAW.items():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with session.post(f"{stage.url}{path}", data=body, headers=headers) as reply:
                problem = await reply.json()
                assert reply.status == status, (name, problem)
                assert set(problem) == {"detail", "reason", "remedy"}, name
                assert sentence in problem["detail"], (name, problem)
    assert (stage.pending("arith"), stage.steps("arith")) == (0, 0)
    assert "a" not in {key.name for key in stage.cluster.objects}


async def test_a_client_that_differs_from_its_run_in_git_is_told_both_values(
    stage: Stage, tmp_path: Path
) -> None:
    run = stage.body("TrainingRun", "arith")["spec"]
    bound = {"loss": {"name": "ppo"}, "learningRate": "1e-5"}
    await stage.apply("TrainingRun", "arith", {**run, **bound})
    variables = environment(stage.url, TRAINER, tmp_path)
    told = dict(await drive(NEWEST, "bound", variables, model="arith"))
    loss, rate = told["loss"], told["learning rate"]
    assert (loss[0], rate[0]) == (409, 409)
    assert "spec.loss of TrainingRun arith is ppo" in loss[1]
    assert "and the command says importance_sampling; nothing was applied" in loss[1]
    assert "spec.learningRate of TrainingRun arith is 1e-05, and the command says 0.01" in rate[1]
    # HUD's client shows the detail alone, so the remedy is in it.
    assert "send 1e-05, edit spec.learningRate, or take it out of the spec" in rate[1]
    assert told["as in Git"] == [1, "arith-000001"]
