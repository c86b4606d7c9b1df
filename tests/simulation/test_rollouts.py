"""What rollouts are asked, how often, and what one that refuses or fails means for the others."""

from __future__ import annotations

import asyncio

from tests.simulation.scripted import ScriptedRollouts
from tests.simulation.virtual_time import run

from espalier.api.wire.problem import Problem
from espalier.api.wire.rollout_control import Served, ServeRequest
from espalier.controllers.peers.peer import Peer
from espalier.controllers.peers.sampler_client import RolloutError
from espalier.controllers.peers.samplers import READ_BACK_SECONDS, Rollouts
from espalier.core.head.head_view import SamplerPod
from espalier.core.head.served_adapters import DesiredAdapters
from espalier.core.pods.pods import Pod

DIGEST = "sha256:" + "1" * 64
STABLE, NEWER, OTHER = f"m@{'1' * 12}", f"m@{'2' * 12}", f"m@{'3' * 12}"
HEADS = (DesiredAdapters("m", NEWER, STABLE), DesiredAdapters("canary", OTHER, OTHER))


def pod(instance: str = "uid/1", ip: str = "10.0.0.1") -> Pod:
    return Pod("pod", "uid-1", "rollout", ip, instance, True, True, False, False)


class Engine(ScriptedRollouts):
    """One pod that is up, with so many slots for adapters."""

    def __init__(self, slots: int = 4) -> None:
        super().__init__()
        self.up = {"10.0.0.1"}
        self.slots = slots
        self.calls: list[list[str]] = []

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        self.calls.append(request.adapters)
        if len(request.adapters) > self.slots:
            raise RolloutError(422, Problem(detail="too many", reason="TooManyAdapters"))
        return await super().serve(peer, request)


async def ask(
    rollouts: Rollouts, desired: tuple[DesiredAdapters, ...] = HEADS, **of: str
) -> SamplerPod:
    await rollouts.serve("default", "m", [pod(**of)], desired)
    return rollouts.seen("default", [pod(**of)])[0]


def test_an_answer_holds_for_a_while_and_is_then_read_back() -> None:
    async def scenario() -> None:
        engine = Engine()
        rollouts = Rollouts(engine)
        assert (await ask(rollouts)).loaded == {"base", NEWER, OTHER}
        await ask(rollouts)
        assert engine.calls == [[NEWER, OTHER]]
        assert await rollouts.serve("default", "m", [pod()], HEADS) == READ_BACK_SECONDS
        # The engine drops everything: within the bound it is asked, and loads it again.
        engine.serving.clear()
        await asyncio.sleep(READ_BACK_SECONDS)
        await ask(rollouts)
        assert engine.serving["10.0.0.1"] == [NEWER, OTHER]

    run(scenario())


def test_another_adapter_and_another_start_of_the_pod_are_asked_at_once() -> None:
    async def scenario() -> None:
        engine = Engine()
        rollouts = Rollouts(engine)
        await ask(rollouts)
        await ask(rollouts, (DesiredAdapters("m", STABLE, STABLE),))
        assert rollouts.seen("default", [pod("uid/2")])[0].loaded is None
        await ask(rollouts, (DesiredAdapters("m", STABLE, STABLE),), instance="uid/2")
        assert engine.calls == [[NEWER, OTHER], [STABLE], [STABLE]]

    run(scenario())


def test_what_one_head_wants_and_the_pod_refuses_holds_up_no_other_head() -> None:
    async def scenario() -> None:
        engine = Engine()
        engine.broken = {NEWER}
        rollouts = Rollouts(engine)
        seen = await ask(rollouts)
        assert seen.loaded == {"base", STABLE, OTHER}
        assert {a: p.reason for a, p in seen.refused.items()} == {NEWER: "FileAltered"}
        assert engine.serving["10.0.0.1"] == [STABLE, OTHER]
        refusal = rollouts.refusal("default", "sha256:" + "2" * 64)
        assert refusal is not None
        assert refusal.reason == "FileAltered"
        assert rollouts.refusal("elsewhere", "sha256:" + "2" * 64) is None
        assert rollouts.verified("default", DIGEST)

    run(scenario())


def test_a_pod_that_refuses_all_that_it_is_there_for_is_not_made_ready() -> None:
    async def scenario() -> None:
        engine = Engine()
        engine.broken = {OTHER}
        seen = await ask(Rollouts(engine), HEADS[1:])
        assert (seen.loaded, list(seen.refused)) == ({"base"}, [OTHER])
        assert not engine.serving

    run(scenario())


def test_a_model_without_a_checkpoint_has_its_pod_serve_the_base() -> None:
    async def scenario() -> None:
        engine = Engine()
        assert (await ask(Rollouts(engine), (DesiredAdapters("m", "base", "base"),))).loaded == {
            "base"
        }
        assert engine.serving == {"10.0.0.1": []}

    run(scenario())


def test_too_much_at_once_is_no_refusal_of_any_of_it() -> None:
    async def scenario() -> None:
        seen = await ask(Rollouts(Engine(slots=1)))
        assert (seen.loaded, dict(seen.refused)) == (None, {})
        assert "TooManyAdapters" in seen.problem

    run(scenario())


def test_a_pod_that_does_not_answer_is_asked_less_and_less_often() -> None:
    async def scenario() -> None:
        engine = Engine()
        engine.up = set()
        rollouts = Rollouts(engine)
        waits = []
        for _ in range(7):
            assert "connection refused" in (await ask(rollouts)).problem
            wait = await rollouts.serve("default", "m", [pod()], HEADS)
            assert wait is not None
            waits.append(wait)
            await asyncio.sleep(wait)
        assert waits == [1, 2, 4, 8, 16, 30, 30]
        engine.up = {"10.0.0.1"}
        assert (await ask(rollouts)).problem == ""

    run(scenario())


def test_an_answer_that_leaves_something_out_confirms_nothing() -> None:
    class Forgetful(Engine):
        async def serve(self, peer: Peer, request: ServeRequest) -> Served:
            served = await super().serve(peer, request)
            return served.model_copy(update={"adapters": served.adapters[:1]})

    async def scenario() -> None:
        seen = await ask(Rollouts(Forgetful()))
        assert (seen.loaded, seen.problem) == (None, f"NotLoaded (0): did not load {OTHER}")

    run(scenario())
