"""Completions of a model of full weights, whose rollouts hold one checkpoint: its head moves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from tests.gateway.conftest import Behaviour, Gateway, Upstream
from tests.gateway.world import World, digest

from espalier.gateway.routes import completions, full_weights_swap
from espalier.gateway.world.world import NamespacedName

A, B = digest("a1"), digest("b2")
NAME_A, NAME_B = "arith@a1a1a1a1a1a1", "arith@b2b2b2b2b2b2"
Start = Callable[[Behaviour], Awaitable[Upstream]]
ASK = {"model": "arith", "prompt": "1+1=", "max_tokens": 1}


class Rollout:
    """Holds one checkpoint; ``meanwhile`` happens while it refuses another."""

    def __init__(self, holds: str) -> None:
        self.holds = holds
        self.meanwhile: Callable[[], None] = lambda: None

    async def __call__(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        if body["model"] == self.holds:
            return web.json_response({"model": self.holds, "choices": [{"text": "2"}]})
        self.meanwhile()
        error = {"message": f"{body['model']} is not loaded", "code": 409}
        return web.json_response({"error": error}, status=409)


def serve(world: World, *pods: Upstream, at: str = "", to: str = "arith-000002") -> NamespacedName:
    """A model with two checkpoints, whose head is at one and goes to the other."""
    model = world.model("arith")
    for name, content in (("arith-000001", A), ("arith-000002", B)):
        world.checkpoint(model, name, content, step=int(name[-6:]))
    move(world, at or "arith-000001", to)
    for number, pod in enumerate(pods):
        world.pod(model, f"arith-rollout-{number}", ip="127.0.0.1", port=pod.port)
    return model


def move(world: World, at: str, to: str) -> None:
    content = A if at == "arith-000001" else B
    model = NamespacedName(world.namespaces[0], "arith")
    world.head(model, content, step=int(at[-6:]), checkpoint=at, target=to)


@pytest.mark.parametrize("target", ["arith-000001", "arith-000002"])
@pytest.mark.parametrize("asked", ["arith", "arith@arith-000002"])
async def test_a_completion_that_comes_before_its_heads_move_is_on_record_waits_for_it(
    gateway: Gateway, upstream: Start, asked: str, target: str
) -> None:
    rollout = Rollout("nothing yet")
    pod = await upstream(rollout)
    serve(gateway.world, pod, to=target)

    def arrive() -> None:
        if len(pod.requests) == completions.ATTEMPTS:
            rollout.holds = NAME_B
            move(gateway.world, "arith-000002", "arith-000002")

    rollout.meanwhile = arrive
    reply = await gateway.post("/v1/completions", ASK | {"model": asked})
    assert (reply.status, (await reply.json())["model"]) == (200, asked)
    assert pod.bodies[-1]["model"] == NAME_B


async def test_another_pod_that_holds_it_is_asked_at_once(
    gateway: Gateway, upstream: Start
) -> None:
    pods = [await upstream(Rollout(holds)) for holds in (NAME_B, NAME_A)]
    serve(gateway.world, *pods)
    for _ in range(2):
        assert (await gateway.post("/v1/completions", ASK)).status == 200
    assert len(pods[1].requests) == 2


@pytest.mark.parametrize("ref", ["arith-000001", "base"])
async def test_a_checkpoint_that_the_head_is_not_at_is_a_409_with_the_remedy(
    gateway: Gateway, upstream: Start, ref: str
) -> None:
    pod = await upstream(Rollout(NAME_B))
    serve(gateway.world, pod, at="arith-000002")
    reply = await gateway.post("/v1/completions", ASK | {"model": f"arith@{ref}"})
    error = (await reply.json())["error"]
    assert (reply.status, error["code"]) == (409, "CheckpointNotLoaded")
    assert f"have the head point at {ref}" in error["message"]


async def test_a_move_that_takes_too_long_is_a_503_to_try_again(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_weights_swap, "MOVE_SECONDS", 0.0)
    pod = await upstream(Rollout(NAME_B))
    serve(gateway.world, pod)
    reply = await gateway.post("/v1/completions", ASK)
    assert (reply.status, (await reply.json())["error"]["code"]) == (503, "HeadMoving")
    assert "Retry-After" in reply.headers


async def test_a_rollout_that_never_holds_what_its_head_is_at_is_a_503(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(Rollout("something else"))
    serve(gateway.world, pod, at="arith-000002")
    reply = await gateway.post("/v1/completions", ASK | {"model": "arith@arith-000002"})
    assert (reply.status, (await reply.json())["error"]["code"]) == (503, "HeadMoving")
