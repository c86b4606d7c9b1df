"""A client that stops calling gives its trainer back, and gets it again with its next call."""

from __future__ import annotations

import asyncio

import pytest
from tests.gateway.conftest import PRIVATE_KEY
from tests.simulation.virtual_time import run
from tests.simulation.world import NAMESPACE, World, model_spec, run_spec, world

from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.context import HELD_SECONDS
from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.trainer_lookup import TrainerLookup
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.kube.cache import Cache
from espalier.podclient import pod_session

IDLE_SECONDS = 120
# What it may take beyond that until the pod is gone.
GRACE_SECONDS = 60.0
TINY = NamespacedName(NAMESPACE, "tiny")


async def idle(w: World, seconds: int = IDLE_SECONDS) -> None:
    """A client-driven run that nobody calls, at the moment that its trainer is gone."""
    await started(w, seconds)
    began = asyncio.get_running_loop().time()
    await w.until_at(lambda: gone(w), "the trainer is freed")
    took = asyncio.get_running_loop().time() - began
    assert seconds - 10 < took < seconds + GRACE_SECONDS


async def started(w: World, seconds: int = IDLE_SECONDS) -> None:
    await w.apply("TrainableModel", "tiny", model_spec(trainer={"idleSeconds": seconds}))
    await w.apply("TrainingRun", "mine", run_spec("tiny", 9, driver="Client"))
    await w.until_at(lambda: trains(w), "the run trains")
    w.trainer.called = asyncio.get_running_loop().time()


def gone(w: World) -> bool:
    return not list(w.kubelet.pods("trainer"))


def ready(w: World) -> str:
    reason: str = w.condition("TrainingRun", "mine", "Ready")["reason"]
    return reason


def trains(w: World) -> bool:
    return ready(w) in ("Training", "AwaitingClient")


class Gateway:
    """The part of a gateway that finds trainers, on the world's API server."""

    def __init__(self, w: World) -> None:
        cache = Cache()
        w.cluster.feed(cache)
        tokens = TokenIssuer()
        tokens.use(PRIVATE_KEY)
        watch = WorldWatch(cache, (NAMESPACE,))
        self.trainers = TrainerLookup(watch, w.cluster, tokens, pod_session())

    async def call(self, *, wait: bool = True) -> str:
        """Name of the trainer's pod that takes a call."""
        return (await self.trainers.ready(TINY, HELD_SECONDS if wait else 0.0)).name


def test_a_trainer_that_nobody_calls_is_freed_within_a_minute_of_its_limit() -> None:
    async def scenario() -> None:
        async with world() as w:
            await idle(w)
            assert ready(w) == "Idle"
            assert w.condition("TrainingRun", "mine", "Ready")["status"] == "True"
            said = w.condition("TrainableModel", "tiny", "TrainerReady")
            assert (said["reason"], said["message"]) == (
                "Idle",
                "TrainingRun mine waits for a call",
            )
            assert w.condition("TrainableModel", "tiny", "Ready")["status"] == "True"

    run(scenario())


def test_nothing_but_a_call_takes_it_back_not_even_a_new_operator() -> None:
    async def scenario() -> None:
        async with world() as w:
            await idle(w)
            await w.kill()
            await w.rest(600, seconds=1)
            assert gone(w)
            assert w.crashes == 1
            assert ready(w) == "Idle"

    run(scenario())


@pytest.mark.parametrize("operator_is_down", [False, True])
def test_the_next_call_is_held_and_takes_it_back(operator_is_down: bool) -> None:
    async def scenario() -> None:
        async with world() as w:
            await idle(w)
            gateway = Gateway(w)
            if operator_is_down:
                await w.kill()
            w.trainer.called = asyncio.get_running_loop().time()
            waiting = asyncio.create_task(gateway.call())
            await w.until_at(waiting.done, "the call has a trainer")
            assert waiting.result() == "tiny-trainer-0"
            await w.until_at(lambda: trains(w), "the run trains")
            assert "idleSince" not in w.status("TrainingRun", "mine")
            # And it is given back again.
            await w.until_at(lambda: gone(w), "the trainer is freed once more")

    run(scenario())


def test_a_client_that_repeats_its_calls_is_told_at_once() -> None:
    async def scenario() -> None:
        async with world() as w:
            await idle(w)
            with pytest.raises(RefusalError) as refused:
                await Gateway(w).call(wait=False)
            assert (refused.value.status, refused.value.reason) == (503, "TrainerIdle")
            # A trainer counts from its start.
            w.trainer.called = asyncio.get_running_loop().time()
            await w.until_at(lambda: trains(w), "the run trains")

    run(scenario())


def test_a_call_that_comes_while_the_pod_is_being_given_up_keeps_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            await started(w)
            await w.until_at(lambda: ready(w) == "Idle", "the run is idle")
            pod = w.get("Pod", "tiny-trainer-0")["metadata"]["uid"]
            # It was on its way when the status was written.
            w.trainer.called = asyncio.get_running_loop().time()
            await w.until_at(lambda: trains(w), "the run trains")
            await w.rest(60, seconds=1)
            assert w.get("Pod", "tiny-trainer-0")["metadata"]["uid"] == pod

    run(scenario())


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [({"driver": "Client"}, 0), ({"driver": "Runner"}, IDLE_SECONDS)],
    ids=["no limit", "a runner"],
)
def test_other_trainers_stay(spec: dict[str, str], seconds: int) -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            await w.apply("TrainableModel", "tiny", model_spec(trainer={"idleSeconds": seconds}))
            await w.apply("TrainingRun", "mine", run_spec("tiny", 9, **spec))
            await w.until_at(lambda: trains(w), "the run trains")
            await w.rest(2 * IDLE_SECONDS, seconds=1)
            assert not gone(w)

    run(scenario())


def test_while_it_is_called_again_and_again_it_stays() -> None:
    async def scenario() -> None:
        async with world() as w:
            await started(w)
            for _ in range(10):
                await w.rest(IDLE_SECONDS // 2, seconds=1)
                w.trainer.called = asyncio.get_running_loop().time()
                assert trains(w)

    run(scenario())


def test_its_limit_may_be_edited_while_it_runs() -> None:
    async def scenario() -> None:
        async with world() as w:
            await started(w, 100_000)
            await w.rest(200, seconds=1)
            await w.apply("TrainableModel", "tiny", model_spec(trainer={"idleSeconds": 60}))
            await w.until_at(lambda: gone(w), "the trainer is freed")

    run(scenario())
