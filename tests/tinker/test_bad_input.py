"""Mistakes of Tinker's clients: the SDK raises its typed error quickly, and nothing is applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zstandard
from tests.compat.stage import NAMESPACE, Stage
from tests.tinker.conftest import BASE
from tests.tinker.sdk import ERRORS, NEWEST, environment, started

from espalier.kube.objects import ObjectKey
from espalier.tinker.messages_pb2 import ForwardBackwardRequest

pytestmark = pytest.mark.timeout(900)
SCRIPT = Path(__file__).with_name("mistakes.py")
# No mistake is tried again and again: those of a starting server may be, for up to five minutes.
QUICK_SECONDS = 60
# The class of the SDK's error, its category, and a part of what it says.
EXPECTED = {
    "revoked": ("AuthenticationError", "", "no such API key: it was revoked, or never issued"),
    "unknown loss": ("UnprocessableEntityError", "", "is not a loss of this trainer"),
    "unknown config": ("UnprocessableEntityError", "", "epsilom"),
    "learning rate NaN": ("UnprocessableEntityError", "", "adam_params.learning_rate"),
    "learning rate below 0": ("UnprocessableEntityError", "", "adam_params.learning_rate"),
    "beta above 1": ("UnprocessableEntityError", "", "adam_params.beta1"),
    "after mistakes": ("none", "", ""),
    "deleted model": ("NotFoundError", "", "names nothing here"),
    "its sampler": ("RequestFailedError", "user", "was deleted"),
}


async def test_each_mistake_is_raised_by_name_and_quickly(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    revoked = key[:-64] + "0" * 64
    given = json.dumps({"base": BASE, "revoked": revoked})
    told: dict[str, Any] = {}
    variables = environment(stage.url, key, tmp_path)
    async with started(NEWEST, variables, str(SCRIPT), given, talks=True) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        while line := await client.stdout.readline():
            said = json.loads(line)
            if "wait" in said:
                await _delete(stage, said["told"])
                client.stdin.write(b"\n")
                await client.stdin.drain()
            else:
                told |= said
    assert set(told) == set(EXPECTED), (tmp_path / ERRORS).read_text()[-4000:]
    for name, (kind, category, says) in EXPECTED.items():
        found = told[name]
        assert (found["kind"], found.get("category", "")) == (kind, category), (name, found)
        assert says in found["says"], (name, found)
        assert found["seconds"] < QUICK_SECONDS, (name, found)


async def _delete(stage: Stage, model: str) -> None:
    session, _, number = model.partition(":train:")
    trained = f"tk-{session.rpartition('.')[2]}-{number}"
    assert stage.steps(trained) == 1, "of all these one step was right"
    await stage.cluster.delete(ObjectKey("TrainableModel", NAMESPACE, trained))
    await stage.until(lambda: not stage.body("TrainableModel", trained), f"{trained} is gone")


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
