"""Mistakes of Tinker's clients: the SDK raises its typed error quickly, and nothing is applied."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zstandard
from tests.compat.stage import NAMESPACE, Stage
from tests.tinker.conftest import BASE
from tests.tinker.sdk import ERRORS, NEWEST, environment, started
from tests.tinker.test_training import trained

from espalier.core.api_keys import SECRET
from espalier.gateway.access.key_source import REVOKED_SECONDS
from espalier.kube.objects import ObjectKey
from espalier.tinker.messages_pb2 import ForwardBackwardRequest

pytestmark = pytest.mark.timeout(900)
SCRIPT = Path(__file__).with_name("mistakes.py")
# No mistake is tried again and again: those of a starting server may be, for up to five minutes.
QUICK_SECONDS = 60
# The class of the SDK's error, its category, and a part of what it says.
EXPECTED = {
    "never issued": ("AuthenticationError", "", "it was revoked, or never issued"),
    "unknown loss": ("UnprocessableEntityError", "", "is not a loss of this trainer"),
    "unknown config": ("UnprocessableEntityError", "", "epsilom"),
    "learning rate NaN": ("UnprocessableEntityError", "", "adam_params.learning_rate"),
    "learning rate below 0": ("UnprocessableEntityError", "", "adam_params.learning_rate"),
    "beta above 1": ("UnprocessableEntityError", "", "adam_params.beta1"),
    "learning rate infinite": ("UnprocessableEntityError", "", "adam_params.learning_rate"),
    "epsilon 0": ("UnprocessableEntityError", "", "adam_params.eps"),
    "after mistakes": ("none", "", ""),
    "second client": ("UnprocessableEntityError", "", "forks this one"),
    "second steps": ("UnprocessableEntityError", "", ":train:0 trains this model"),
    "second reads": ("none", "", ""),
    "held": ("none", "", ""),
    "earlier weights": ("RequestFailedError", "user", "before a model's first optimizer step"),
    "evicted sampler": ("RequestFailedError", "user", "has no"),
    "other sampler": ("none", "", ""),
    "deleted model": ("NotFoundError", "", "names nothing here"),
    "its sampler": ("RequestFailedError", "user", "was deleted"),
    "revoked": ("AuthenticationError", "", "it was revoked, or never issued"),
    "revoked, sampling": ("AuthenticationError", "", "it was revoked, or never issued"),
}


async def test_each_mistake_is_raised_by_name_and_quickly(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    given = json.dumps({"base": BASE, "never_issued": key[:-64] + "0" * 64})
    told: dict[str, Any] = {}
    variables = environment(stage.url, key, tmp_path)
    async with started(NEWEST, variables, str(SCRIPT), given, talks=True) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        while line := await client.stdout.readline():
            said = json.loads(line)
            if "wait" not in said:
                told |= said
                continue
            await DISTURBANCES[said["wait"]](stage, trained(said["told"]))
            client.stdin.write(b"\n")
            await client.stdin.drain()
            if said["wait"] == "the head to be pinned":
                await _let_go(stage, trained(said["told"]), tmp_path / ERRORS)
    assert set(told) == set(EXPECTED), (tmp_path / ERRORS).read_text()[-4000:]
    for name, (kind, category, says) in EXPECTED.items():
        found = told[name]
        assert (found["kind"], found.get("category", "")) == (kind, category), (name, found)
        assert says in found["says"], (name, found)
        assert found["seconds"] < QUICK_SECONDS, (name, found)


async def _pin(stage: Stage, model: str) -> None:
    """Holds training; of all that was sent so far one step was right."""
    assert stage.steps(model) == 1
    pin = {"mode": "Pin", "checkpointRef": {"name": f"{model}-000001"}, "onPin": "Pause"}
    await stage.apply("CheckpointHead", model, {"modelRef": {"name": model}, **pin})

    def paused() -> bool:
        agreed = stage.body("CheckpointHead", model).get("status", {}).get("agreed") or {}
        return agreed.get("onPin") == "Pause" and model not in _trainers(stage)

    await stage.until(paused, "training is held")


async def _let_go(stage: Stage, model: str, log: Path) -> None:
    """Ends the pause, once the client has said on its console what holds it."""
    await stage.until(lambda: "onPin: Pause holds training" in log.read_text(), "a word of it")
    await stage.apply("CheckpointHead", model, {"modelRef": {"name": model}, "mode": "Track"})


async def _collect(stage: Stage, model: str) -> None:
    assert stage.steps(model) == 2, "the step that was held was taken once"
    name = f"{model}-000001"
    await stage.cluster.delete(ObjectKey("Checkpoint", NAMESPACE, name))
    await stage.until(lambda: not stage.body("Checkpoint", name), f"{name} is gone")


async def _delete(stage: Stage, model: str) -> None:
    assert stage.steps(model) == 2
    await stage.cluster.delete(ObjectKey("TrainableModel", NAMESPACE, model))
    await stage.until(lambda: not stage.body("TrainableModel", model), f"{model} is gone")


async def _revoke(stage: Stage, _: str) -> None:
    await stage.cluster.delete(ObjectKey("Secret", NAMESPACE, SECRET))
    # The gateway asks for a key again after that.
    await asyncio.sleep(REVOKED_SECONDS)


DISTURBANCES = {
    "the head to be pinned": _pin,
    "the first checkpoint to be deleted": _collect,
    "the model to be deleted": _delete,
    "the key to be revoked": _revoke,
}


def _trainers(stage: Stage) -> set[str]:
    return {trainer.model for trainer in stage.trainers.values()}


def _chunk() -> bytes:
    message = ForwardBackwardRequest(model_id=f"{NAMESPACE}.arith", seq_id=1)
    return message.SerializeToString()


PROTOBUF = "application/x-protobuf"
# Content type, encoding, body, and the reason of the refusal.
BODIES: tuple[tuple[str, str, bytes, str], ...] = (
    ("application/json", "identity", b"{}", "ProtobufWanted"),
    (PROTOBUF, "identity", b"\xff\xff\xff", "InvalidRequest"),
    (PROTOBUF, "zstd", zstandard.compress(_chunk())[:-3], "InvalidZstd"),
    (PROTOBUF, "zstd", b"no zstd", "InvalidZstd"),
    (PROTOBUF, "zstd", zstandard.compress(b"\0" * 2**28), "BodyTooLarge"),
    (PROTOBUF, "br", _chunk(), "ContentEncodingNotTaken"),
)


async def test_a_body_that_is_wrong_is_refused_by_name(stage: Stage, key: str) -> None:
    url = f"{stage.url}/api/v1/forward_backward"
    async with aiohttp.ClientSession(headers={"X-API-Key": key}) as session:
        for content_type, encoding, body, reason in BODIES:
            headers = {"Content-Type": content_type, "Content-Encoding": encoding}
            answer = await session.post(url, data=body, headers=headers)
            text = await answer.text()
            assert 400 <= answer.status < 500, text
            assert answer.status not in {408, 409, 429}, "the SDK would try it again"
            assert reason in text, (content_type, encoding, body[:20])


async def test_an_sdk_that_is_too_old_is_told_so_when_it_begins(stage: Stage, key: str) -> None:
    async with aiohttp.ClientSession(headers={"X-API-Key": key}) as session:
        asked = {"tags": [], "sdk_version": "0.16.1", "type": "create_session"}
        answer = await session.post(f"{stage.url}/api/v1/create_session", json=asked)
        assert answer.status == 422
        assert "pip install -U tinker" in (await answer.json())["detail"]
        answer = await session.post(
            f"{stage.url}/api/v1/create_session",
            json=asked | {"sdk_version": "0.99.0", "tags": ["a"], "user_metadata": {"team": "a"}},
        )
        warning = (await answer.json())["warning_message"]
        assert "0.99.0 is newer" in warning
        assert "tags and user_metadata of a session are kept nowhere" in warning
