"""What does not get on is named within a minute, also where Kubernetes hides it, and cheaply."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.simulation.virtual_time import run
from tests.simulation.world import TASKS, World, model_spec, run_spec, world

from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.import_state import ImportState
from espalier.core.run.why import why
from espalier.kube.objects import Body, ObjectKey

QUOTA = "exceeded quota: q, requested: limits.cpu=2, limited: limits.cpu=1"
MODEL, RUN = "TrainableModel", "TrainingRun"


class Lists:
    """Counts the lists of Events by the kind that they are about."""

    def __init__(self, w: World) -> None:
        self.asked: list[str] = []
        method = w.cluster.list

        async def counted(kind: str, *args: Any, **kwargs: Any) -> list[Body]:
            if kind == "Event":
                self.asked.append(kwargs["fields"]["involvedObject.kind"])
            return await method(kind, *args, **kwargs)

        w.cluster.list = counted  # type: ignore[method-assign]


async def named(w: World, kind: str, name: str, *words: str) -> Body:
    """Ready of the object, once it says all these words: in less than a minute."""
    begun = asyncio.get_running_loop().time()

    def ready() -> Body:
        return w.condition(kind, name, "Ready")

    await w.until_at(lambda: all(word in str(ready()) for word in words), f"{name} says {words}")
    assert asyncio.get_running_loop().time() - begun < 60
    return ready()


def why_of(w: World, name: str) -> str:
    return why(TrainingRun.model_validate(w.get(RUN, name)), lambda _: pytest.fail("no other"))


def warnings(w: World, kind: str, name: str) -> set[str]:
    return {event["reason"] for event in w.events(kind, name) if event["type"] == "Warning"}


@pytest.mark.parametrize("role", ["importer", "rollout", "trainer", "runner"])
def test_pods_that_no_controller_may_make_are_named_with_the_api_servers_words(role: str) -> None:
    async def scenario() -> None:
        async with world() as w:
            lists = Lists(w)
            w.kubelet.refused[role] = QUOTA
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 1))
            of_run = role != "importer"
            kind, name = (RUN, "digits") if of_run else (MODEL, "tiny")
            said = await named(w, kind, name, QUOTA)
            assert said["reason"] == "FailedCreate"
            assert "FailedCreate" in warnings(w, kind, name)
            if of_run:
                assert QUOTA in why_of(w, "digits")
            # A Deployment says it itself.
            begun = len(lists.asked)
            await w.rest(10, seconds=6.0)
            assert len(lists.asked) - begun <= (0 if role == "rollout" else 6)
            w.kubelet.refused.clear()
            await w.until(lambda: w.succeeded("digits", 1), "granted")

    run(scenario())


@pytest.mark.parametrize("role", ["importer", "rollout", "trainer", "runner"])
def test_a_volume_that_cannot_be_mounted_is_named(role: str) -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.unmounted[role] = "Multi-Attach error for volume weights"
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 1))
            kind, name = (MODEL, "tiny") if role == "importer" else (RUN, "digits")
            said = await named(w, kind, name, "Multi-Attach error")
            assert said["reason"] == "FailedMount"
            w.kubelet.unmounted.clear()
            await w.until(lambda: w.succeeded("digits", 1), "mounted")

    run(scenario())


def test_nothing_is_listed_while_all_gets_on() -> None:
    async def scenario() -> None:
        async with world() as w:
            lists = Lists(w)
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 3))
            await w.until(lambda: w.succeeded("digits", 3), "trained")
            assert not lists.asked

    run(scenario())


def test_a_run_without_its_config_map_says_so_and_lets_others_train_until_it_is_there() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.cluster.delete(ObjectKey("ConfigMap", "default", "tasks"))
            await w.apply(MODEL, "tiny", model_spec())
            style = {"name": "style", "python": {"configMapRef": {"name": "style", "key": "a.py"}}}
            pay = {"name": "pay", "http": {"serviceRef": {"name": "pay", "port": 80}}}
            await w.apply(RUN, "a-first", run_spec("tiny", 1, rewards=[style, pay]))
            said = await named(w, RUN, "a-first", "ConfigMap tasks does not exist: create it")
            assert (said["status"], said["reason"]) == ("False", "TasksetInvalid")
            assert "ConfigMap tasks does not exist" in why_of(w, "a-first")
            assert "TasksetInvalid" in warnings(w, RUN, "a-first")
            gym = {"seed": 1, "reasoningGym": {"dataset": "chain_sum"}}
            await w.apply(RUN, "b-second", run_spec("tiny", 1, taskset=gym))
            await w.until(lambda: w.succeeded("b-second", 1), "the other run trains")
            await w.cluster.create("ConfigMap", {**TASKS, "data": {"other": ""}})
            await named(w, RUN, "a-first", "has no key tasks.jsonl: it has other")
            assert not w.get("Job", "a-first-runner")
            w.cluster.edit(
                ObjectKey("ConfigMap", "default", "tasks"),
                lambda body: body.update(data=TASKS["data"]),
            )
            missing = "spec.rewards[style].python.configMapRef.name: ConfigMap style does not exist"
            said = await named(w, RUN, "a-first", missing)
            assert (said["status"], said["reason"]) == ("False", "RewardInvalid")
            assert not w.get("Job", "a-first-runner")
            metadata = {**TASKS["metadata"], "name": "style"}
            await w.cluster.create("ConfigMap", {"metadata": metadata, "data": {"a.py": ""}})
            missing = "spec.rewards[pay].http.serviceRef.name: Service pay does not exist: create"
            await named(w, RUN, "a-first", missing)
            service = {"name": "pay", "namespace": "default"}
            await w.cluster.create("Service", {"metadata": service, "spec": {}})
            await w.until(lambda: w.succeeded("a-first", 1), "it trains as well")

    run(scenario())


def test_a_run_whose_judge_does_not_exist_starts_when_it_comes_and_asks_nobody_for_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            asked: list[ObjectKey] = []
            get = w.cluster.get

            async def counted(key: ObjectKey) -> Body | None:
                asked.append(key)
                return await get(key)

            w.cluster.get = counted  # type: ignore[method-assign]
            await w.apply(MODEL, "tiny", model_spec())
            judge = {"modelRef": {"name": "critic"}, "rubric": "Is it kind?"}
            gym = {"seed": 1, "reasoningGym": {"dataset": "chain_sum"}}
            spec = run_spec("tiny", 1, taskset=gym, rewards=[{"name": "kind", "judge": judge}])
            await w.apply(RUN, "digits", spec)
            missing = "spec.rewards[kind].judge.modelRef.name: TrainableModel critic does not exist"
            await named(w, RUN, "digits", missing)
            assert not w.get("Job", "digits-runner")
            await w.apply(MODEL, "critic", model_spec())
            await w.until(lambda: w.succeeded("digits", 1), "it trains")
            assert not [key for key in asked if key.name == "critic" and key.kind == MODEL]

    run(scenario())


def test_a_run_whose_model_has_no_rollouts_does_not_say_that_it_trains() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply(MODEL, "tiny", model_spec(rollout={"replicas": 0}))
            await w.apply(RUN, "digits", run_spec("tiny", 1))
            said = await named(
                w, RUN, "digits", "spec.rollout.replicas of TrainableModel tiny is 0"
            )
            assert (said["status"], said["reason"]) == ("False", "RolloutsIdle")
            assert "set it to 1" in why_of(w, "digits")
            await w.apply(MODEL, "tiny", model_spec(rollout={"replicas": 1}))
            await w.until(lambda: w.succeeded("digits", 1), "it trains")

    run(scenario())


def test_a_run_whose_rollouts_are_gone_does_not_say_that_it_trains() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 1))
            await named(w, RUN, "digits", "Training")
            w.kubelet.waiting["rollout"] = {"reason": "ErrImagePull", "message": "no such image"}
            said = await named(w, RUN, "digits", "rollouts: 0 of 1 ready", "no such image")
            assert (said["status"], said["reason"]) == ("False", "ErrImagePull")
            w.kubelet.waiting.clear()
            w.trains = True
            await w.until(lambda: w.succeeded("digits", 1), "it trains")

    run(scenario())


def test_sidecars_that_keep_jobs_alive_hold_nothing_up() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.sidecars = {"importer", "runner"}
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 2))
            await w.until(lambda: w.succeeded("digits", 2), "trained")
            assert not w.get("Job", "tiny-import")
            assert not w.get("Job", "digits-runner")

    run(scenario())


def test_a_runner_that_gave_up_beside_a_sidecar_stalls_its_run() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.sidecars = {"runner"}
            w.kubelet.giving_up["runner"] = {
                "detail": "no such dataset",
                "reason": "UnknownDataset",
            }
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 1))
            said = await named(w, RUN, "digits", "no such dataset")
            assert said["reason"] == "UnknownDataset"

    run(scenario())


@pytest.mark.parametrize("name", ["tiny-import", "digits-runner"])
def test_a_suspended_job_is_named(name: str) -> None:
    async def scenario() -> None:
        async with world() as w:
            method = w.cluster.create

            async def queued(kind: str, body: Body) -> Body | None:
                if kind == "Job" and body["metadata"]["name"] == name:
                    body = {**body, "spec": {**body["spec"], "suspend": True}}
                return await method(kind, body)

            w.cluster.create = queued  # type: ignore[method-assign]
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 1))
            kind, of = (MODEL, "tiny") if name == "tiny-import" else (RUN, "digits")
            said = await named(w, kind, of, "suspended by hand", "spec.suspend")
            assert said["reason"] == "JobSuspended"
            w.cluster.edit(
                ObjectKey("Job", "default", name), lambda body: body["spec"].pop("suspend")
            )
            await w.until(lambda: w.succeeded("digits", 1), "released")

    run(scenario())


def test_another_config_map_in_mid_run_takes_effect_and_other_edits_do_not_restart_the_runner() -> (
    None
):
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 2))
            await named(w, RUN, "digits", "Training")
            job = w.get("Job", "digits-runner")["metadata"]["uid"]
            await w.apply(RUN, "digits", run_spec("tiny", 2, learningRate="1e-5"))
            await w.rest()
            assert w.get("Job", "digits-runner")["metadata"]["uid"] == job
            other = {**TASKS["metadata"], "name": "others"}
            await w.cluster.create("ConfigMap", {**TASKS, "metadata": other})
            tasks = {"seed": 1, "configMap": {"name": "others"}}
            await w.apply(RUN, "digits", run_spec("tiny", 2, taskset=tasks))
            await w.until(
                lambda: (
                    w.get("Job", "digits-runner").get("metadata", {}).get("uid") not in (job, None)
                ),
                "a runner that mounts it",
            )
            (volume,) = [
                v
                for v in w.get("Job", "digits-runner")["spec"]["template"]["spec"]["volumes"]
                if v["name"] == "tasks"
            ]
            assert volume["configMap"]["name"] == "others"
            w.trains = True
            await w.until(lambda: w.succeeded("digits", 2), "trained")

    run(scenario())


def test_a_step_costs_a_run_two_writes_and_its_health_does_not_flap() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 12))
            await w.until_at(lambda: w.steps("tiny") >= 2, "it trains")
            await w.rest(3)
            seen: list[str] = []
            w.cluster.watch(
                lambda _, body: (
                    seen.append(
                        " ".join(
                            f"{c['type']}={c['status']}"
                            for c in body.get("status", {}).get("conditions", ())
                            if c["type"] in ("RewardsInformative", "RolloutsHealthy", "Ready")
                        )
                    )
                    if body["kind"] == RUN
                    else None
                )
            )
            first = w.steps("tiny")
            await w.until_at(lambda: w.steps("tiny") >= first + 6, "six more")
            taken = w.steps("tiny") - first
            assert len(seen) <= 2 * taken + 1
            assert set(seen) == {"Ready=True RewardsInformative=True RolloutsHealthy=True"}

    run(scenario())


def test_checkpoints_of_an_earlier_model_of_the_name_are_met_with_a_sentence() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 2))
            await w.until(lambda: w.succeeded("digits", 2), "trained")
            await w.delete(RUN, "digits")
            await w.delete(MODEL, "tiny")
            await w.rest()
            await w.apply(MODEL, "tiny", model_spec(adapter={"rank": 4}))
            said = await named(w, MODEL, "tiny", "AdapterMismatch", "spec.adapter.rank 16")
            assert "create it with spec.adapter.rank 16 or under another name" in said["message"]
            await w.rest()
            assert not w.kubelet.pods("rollout")
            assert all(
                w.condition("Checkpoint", name, "Ready")["status"] == "True"
                for name in w.checkpoints("tiny")
            )
            await w.delete(MODEL, "tiny")
            await w.rest()
            await w.apply(MODEL, "tiny", model_spec())
            await w.apply(RUN, "digits", run_spec("tiny", 1))
            await w.until(lambda: w.succeeded("digits", 1), "with the rank that they have")

    run(scenario())


def test_an_import_says_how_far_it_is_at_one_write_in_fifteen_seconds() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.slow.add("importer")
            told = ImportState(
                done_bytes=3 * 2**30, total_bytes=4 * 2**30, bytes_per_second=100 * 2**20
            )
            w.importer.told = told
            await w.apply(MODEL, "tiny", model_spec())
            said = await named(w, MODEL, "tiny", "3.0 GiB of 4.0 GiB, 75%, 100.0 MiB/s")
            assert (said["status"], said["reason"]) == ("False", "Importing")
            assert w.status(MODEL, "tiny")["importProgress"] == {
                "doneBytes": 3 * 2**30,
                "totalBytes": 4 * 2**30,
                "bytesPerSecond": 100 * 2**20,
                "percent": 75,
            }
            write = ("apply_status", ObjectKey(MODEL, "default", "tiny"))
            before, writes = w.importer.asked, w.laws.writes.count(write)
            for done in range(60):
                grown = told.done_bytes + done * 2**23
                w.importer.told = told.model_copy(update={"done_bytes": grown})
                await w.tick(1.0)
            assert 3 <= w.importer.asked - before <= 5
            assert w.laws.writes.count(write) - writes <= 5
            w.importer.told = None
            await w.rest(20, seconds=1.0)
            assert "importProgress" not in w.status(MODEL, "tiny")
            assert "has yet to say how far it is" in w.condition(MODEL, "tiny", "Ready")["message"]
            w.importer.told = told
            await named(w, MODEL, "tiny", "3.0 GiB of 4.0 GiB, 75%")
            w.kubelet.placing = True
            await named(w, MODEL, "tiny", "all 4.0 GiB are there, and are checked")
            assert w.status(MODEL, "tiny")["importProgress"]["percent"] == 100
            asked = w.importer.asked
            await w.rest(20, seconds=1.0)
            assert w.importer.asked == asked
            w.kubelet.slow.clear()
            await w.until(
                lambda: w.condition(MODEL, "tiny", "Ready")["status"] == "True", "imported"
            )

    run(scenario())


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"base": {"image": "registry.example/tiny:1"}}, "registry.example/tiny:1"),
        (
            {"base": {"huggingFace": {"repository": "acme/tiny", "revision": "0123456789" * 4}}},
            "acme/tiny@0123456",
        ),
        (
            {"base": {"persistentVolumeClaim": {"claimName": "bases", "path": "tiny"}}},
            "bases/tiny",
        ),
    ],
)
def test_the_source_of_a_model_is_listed_in_a_word(source: Body, shown: str) -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply(MODEL, "tiny", model_spec(source=source))
            await w.until(lambda: w.status(MODEL, "tiny").get("source") == shown, shown)

    run(scenario())
