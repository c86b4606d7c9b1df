"""Deadline, budget and time to live of a run, against operators that crash and clocks that run."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.scripted import SAMPLED, TRAINED
from tests.simulation.virtual_time import run
from tests.simulation.world import NAMESPACE, World, head_spec, model_spec, run_spec, world

from espalier.core.gitowner import ARGO_TRACKING
from espalier.core.names import runner_name
from espalier.kube.objects import Body, ObjectKey

ONE_GPU = {"template": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}


async def start(w: World, steps: int = 9, *, model: Body | None = None, **changes: Any) -> None:
    """A run at the moment that it trains."""
    await w.apply("TrainableModel", "tiny", model or model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", steps, **changes))
    await w.until_at(lambda: ready(w) == "Training", "it trains")


def ready(w: World) -> str:
    reason: str = w.condition("TrainingRun", "digits", "Ready")["reason"]
    return reason


def freed(w: World) -> bool:
    return not list(w.kubelet.pods("trainer")) and not list(w.kubelet.pods("runner"))


def ended(w: World, reason: str) -> bool:
    return w.condition("TrainingRun", "digits", "Succeeded")["reason"] == reason and freed(w)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_run_over_its_deadline_frees_its_pods_and_goes_on_once_it_is_raised() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            await start(w, steps=2, activeDeadlineSeconds=90)
            began = now()
            await w.until_at(lambda: ended(w, "DeadlineExceeded"), "the deadline")
            assert 85 < now() - began < 110
            await w.rest(600, seconds=1)
            assert ended(w, "DeadlineExceeded")
            w.trains = True
            await w.apply("TrainingRun", "digits", run_spec("tiny", 2, activeDeadlineSeconds=900))
            await w.until(lambda: w.succeeded("digits", 2), "it goes on")
            assert w.violations == []

    run(scenario())


def test_neither_suspension_nor_a_crash_changes_how_long_a_run_has_been_active() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            bounded = {"activeDeadlineSeconds": 120}
            await start(w, **bounded)
            began = now()
            await w.rest(40, seconds=1)
            await w.kill()
            await w.apply("TrainingRun", "digits", run_spec("tiny", 9, suspend=True, **bounded))
            await w.until_at(lambda: freed(w), "freed")
            active = now() - began
            await w.rest(900, seconds=1)
            assert abs(w.status("TrainingRun", "digits")["activeSeconds"] - active) < 10
            await w.apply("TrainingRun", "digits", run_spec("tiny", 9, **bounded))
            resumed = now()
            await w.until_at(lambda: ready(w) == "Training", "resumed")
            await w.until_at(lambda: ended(w, "DeadlineExceeded"), "the deadline")
            assert 110 < active + now() - resumed < 150

    run(scenario())


def test_tokens_are_counted_once_over_a_crash_and_a_rollback_and_end_the_run() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.after_step[2] = w.kill
            await start(w, steps=3)
            await w.until(lambda: w.succeeded("digits", 3), "three steps")
            assert usage(w) == (3 * SAMPLED, 3 * TRAINED)
            pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
            await w.apply("CheckpointHead", "tiny", pin)
            await w.until(lambda: w.serves("tiny", "tiny-000001"), "rolled back")
            budget = {"budget": {"maxTrainedTokens": int(5 * TRAINED)}}
            await w.apply("TrainingRun", "digits", run_spec("tiny", 20, **budget))
            await w.until(lambda: ended(w, "BudgetExhausted"), "the budget")
            # What the runner had under way when the budget was reached is taken and counted.
            taken = w.steps("tiny")
            assert 5 <= taken <= 7
            assert usage(w) == (taken * SAMPLED, taken * TRAINED)
            budget = {"budget": {"maxTrainedTokens": int(9 * TRAINED)}}
            await w.apply("TrainingRun", "digits", run_spec("tiny", taken + 1, **budget))
            await w.until(lambda: w.succeeded("digits", taken + 1), "it goes on")
            assert w.violations == []

    run(scenario())


def usage(w: World) -> tuple[float, float]:
    found = w.status("TrainingRun", "digits")["usage"]
    return found["sampledTokens"], found["trainedTokens"]


def test_gpu_seconds_are_those_of_the_pods_that_ran_also_while_no_operator_did() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            placed = model_spec(trainer=ONE_GPU, rollout={"replicas": 2, **ONE_GPU})
            await start(w, model=placed, budget={"maxGpuSeconds": 900})
            began = now()
            counted = w.status("TrainingRun", "digits")["usage"]
            assert counted["gpus"] == 3
            await w.rest(150, seconds=1)
            await w.kill()
            await w.until_at(lambda: ended(w, "BudgetExhausted"), "the budget")
            assert 280 < now() - began < 330
            used = w.status("TrainingRun", "digits")["usage"]
            assert 900 <= used["gpuSeconds"] < 950
            assert used["gpus"] == 0

    run(scenario())


def test_a_finished_run_goes_after_its_time_and_its_checkpoints_stay() -> None:
    async def scenario() -> None:
        async with world() as w:
            await start(w, steps=2, ttlSecondsAfterFinished=60)
            await w.until(lambda: w.succeeded("digits", 2), "it ends")
            await w.rest(50, seconds=1)
            assert w.get("TrainingRun", "digits") != {}
            await w.rest(30, seconds=1)
            assert w.get("TrainingRun", "digits") == {}
            assert w.get("Job", runner_name("digits")) == {}
            assert w.checkpoints("tiny") == ["tiny-000001", "tiny-000002"]
            assert w.serves("tiny", "tiny-000002")
            assert w.violations == []

    run(scenario())


def test_one_that_argo_cd_would_make_again_stays_without_its_job() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply("TrainableModel", "tiny", model_spec())
            tracked = {ARGO_TRACKING: f"team:espalier.dev/TrainingRun:{NAMESPACE}/digits"}
            body = {
                "metadata": {"name": "digits", "namespace": NAMESPACE, "annotations": tracked},
                "spec": run_spec("tiny", 2, ttlSecondsAfterFinished=60),
            }
            await w.cluster.apply("TrainingRun", body, manager="argocd-controller")
            w.laws.by_user(ObjectKey("TrainingRun", NAMESPACE, "digits"))
            await w.until(lambda: w.succeeded("digits", 2), "it ends")
            assert w.get("Job", runner_name("digits")) != {}
            await w.rest(90, seconds=1)
            assert w.get("Job", runner_name("digits")) == {}
            assert w.succeeded("digits", 2)
            message = w.condition("TrainingRun", "digits", "Succeeded")["message"]
            assert "Argo CD (team) applies it" in message
            assert w.violations == []

    run(scenario())
