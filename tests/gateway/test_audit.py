"""Who did what, one line for each act."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from aiohttp import web
from tests.gateway.conftest import Gateway
from tests.gateway.test_completions import ASK, Start, answer, serve
from tests.gateway.test_saves import Saved, saved
from tests.gateway.test_tinker import CHOICE, PROMPT, answers
from tests.gateway.test_training import training
from tests.gateway.world import digest

from espalier.gateway.access.audit import LOGGER
from espalier.gateway.tinker import results
from espalier.gateway.tinker.futures import Future
from espalier.gateway.tinker.names import Sampler, Session, TinkerModel
from espalier.gateway.world.world import NamespacedName
from espalier.process import JsonFormatter

__all__ = ["saved"]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The lines so far, as they are written."""
    caplog.set_level(logging.INFO, LOGGER)

    def read() -> list[dict[str, Any]]:
        found = [record for record in caplog.records if record.name == LOGGER]
        caplog.clear()
        return [json.loads(JsonFormatter().format(record)) for record in found]

    return read


async def test_a_sample_says_who_drew_it_from_which_checkpoint(
    gateway: Gateway, upstream: Start, lines: Any
) -> None:
    model = serve(gateway, (await upstream(answer)).port)
    gateway.world.head(model, digest("a1"), step=1, checkpoint="arith-000001")
    given = {"X-Request-Id": "mine-7"}
    assert (await gateway.post("/v1/completions", ASK, **given)).status == 200
    (line,) = lines()
    assert line.pop("time")
    home = model.namespace
    assert line == {
        "level": "INFO",
        "logger": LOGGER,
        "message": "audit",
        "request_id": "mine-7",
        "action": "Sample",
        "user": f"system:serviceaccount:{home}:trainer",
        "groups": line["groups"],
        "api_key": "",
        "target": f"TrainableModel {home}/arith",
        "before": "",
        "after": "arith-000001",
        "outcome": "Done",
        "reason": "",
        "status": 200,
    }
    assert f"system:serviceaccounts:{home}" in line["groups"]


FORK = {"source_model_id": "arith", "name": "b"}
EVALUATIONS = "/v1/checkpoints/HOME/arith-000001/evaluations"
FILES = {"model_id": "HOME.arith", "seq_id": 1, "path": "a"}
SAVED = "/api/v1/training_runs/HOME.arith/checkpoints/weights/a"
# A model is made where the caller may sample none of this base.
SAMPLER = {"session_id": f"HOME.{'0' * 16}", "sampling_session_seq_id": 0}
SAMPLER |= {"base_model": "registry.example/model:1"}
ACTS: list[tuple[str, str, str, dict[str, Any], str, str]] = [
    ("POST", "/v1/completions", "viewer", ASK, "Sample", "Forbidden"),
    ("POST", "/v1/completions", "", ASK, "Sample", "NoToken"),
    ("POST", "/v1/models/arith/train/optim-step", "viewer", {}, "Train", "Forbidden"),
    ("POST", "/v1/models/arith/train/forward-backward", "viewer", {}, "Train", "Forbidden"),
    ("PUT", "/v2/models/arith/head", "trainer", {"checkpoint_id": "x"}, "MoveHead", "Forbidden"),
    ("POST", "/v2/models/fork", "reader", FORK, "Fork", "Forbidden"),
    ("POST", EVALUATIONS, "reader", {}, "Evaluate", "Forbidden"),
    ("POST", "/api/v1/save_weights_external", "viewer", FILES, "Save", "Forbidden"),
    ("PUT", f"{SAVED}/ttl", "stranger", {"ttl_seconds": 3600}, "Save", "Forbidden"),
    ("DELETE", SAVED, "stranger", {}, "Unsave", "Forbidden"),
    ("POST", "/api/v1/create_sampling_session", "viewer", SAMPLER, "Fork", "Forbidden"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "who", "body", "action", "reason"), ACTS)
async def test_what_is_refused_is_told_too(  # noqa: PLR0917 the columns of a table
    gateway: Gateway,
    lines: Any,
    method: str,
    path: str,
    who: str,
    body: dict[str, Any],
    action: str,
    reason: str,
) -> None:
    model = gateway.world.model("arith")
    gateway.world.head(model, digest("a1"), step=1, checkpoint="arith-000001")
    gateway.world.run(model, "arith")
    token = getattr(gateway.users, who) if who else ""
    path, text = (one.replace("HOME", model.namespace) for one in (path, json.dumps(body)))
    reply = await gateway.request(method, path, token, json=json.loads(text))
    (line,) = lines()
    told = (line["action"], line["outcome"], line["reason"], line["status"])
    assert told == (action, "Refused", reason, reply.status)
    assert line["user"].rpartition(":")[2] == who
    if action == "MoveHead":
        assert line["before"] == "arith-000001"


async def test_what_only_looks_and_a_command_on_the_way_to_a_step_is_not_told(
    gateway: Gateway, upstream: Start, lines: Any
) -> None:
    pod = await upstream(answer)
    model = serve(gateway, pod.port)
    gateway.world.run(model, "arith")
    gateway.world.pod(model, "arith-trainer-0", role="trainer", ip="127.0.0.1", port=pod.port)
    keyed = {"Idempotency-Key": "s/1"}
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/v1/models/arith/train/state"),
        ("POST", "/v1/models/arith/train/zero-grad"),
    ):
        assert (await gateway.request(method, path, json={}, headers=keyed)).status == 200
    assert lines() == []


def by_hand(model: NamespacedName, **params: Any) -> str:
    """The id of a sample that nobody asked for at ``asample``."""
    sampler = Sampler(Session(model.namespace, "0" * 16), 0, model, "base")
    details = {"prompt": PROMPT, "sampling_params": {"max_tokens": 1, **params}}
    return str(Future("sample", str(sampler), 7, details))


async def test_a_sample_whose_id_was_written_by_hand_is_told_once_where_it_is_begun(
    gateway: Gateway, upstream: Start, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "HOLD_SECONDS", 0.2)
    monkeypatch.setattr(results, "LOOK_AGAIN_SECONDS", 0.2)
    release = asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        await release.wait()
        return web.json_response({"choices": [CHOICE]})

    model = serve(gateway, (await upstream(slow)).port)
    future = {"request_id": by_hand(model)}
    for status in (408, 408, 200):
        if status == 200:
            release.set()
        assert (await gateway.post("/api/v1/retrieve_future", future)).status == status
    (line,) = lines()
    told = (line["action"], line["outcome"], line["target"], line["after"], line["status"])
    assert told == ("Sample", "Done", f"TrainableModel {model}", "base", 408)
    assert line["user"].endswith(":trainer")
    stranger = by_hand(model, seed=1)
    viewer = gateway.users.viewer
    assert (await retrieved_by(gateway, viewer, stranger)) == 403
    (line,) = lines()
    assert (line["action"], line["outcome"], line["reason"]) == ("Sample", "Refused", "Forbidden")


async def retrieved_by(gateway: Gateway, token: str, future: str) -> int:
    reply = await gateway.post("/api/v1/retrieve_future", {"request_id": future}, token)
    return reply.status


async def test_a_save_is_told_where_it_changes_something_also_the_end_of_a_name(
    gateway: Gateway, upstream: Start, saved: Saved, lines: Any
) -> None:
    saved.seen()
    pod = await upstream(answers((200, {"checkpoint": saved.name, "digest": digest("a1")})))
    training(gateway, pod.port)
    model = TinkerModel.new(Session(saved.namespace, "0" * 16), 0, "arith")

    async def told(**asked: Any) -> list[tuple[str, str, str]]:
        future = Future("save", str(model), 1, {"type": "save_weights", "path": "best", **asked})
        reply = await gateway.post("/api/v1/retrieve_future", {"request_id": str(future)})
        assert reply.status == 200, await reply.text()
        saved.seen()
        return [(line["action"], line["outcome"], line["after"]) for line in lines()]

    assert await told() == [("Save", "Done", "best")]
    assert await told() == []
    assert await told(ttl_seconds=3600) == [("Save", "Done", "best")]


async def test_a_name_that_is_none_fills_no_log(gateway: Gateway, lines: Any) -> None:
    gateway.world.model("arith")
    await gateway.post("/v1/completions", ASK | {"model": "x" * 100_000})
    (line,) = lines()
    assert len(line["target"]) == 300
