"""All objects of the namespace are lost, the volume is kept: Git and ``adopt`` bring it back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.compat.stage import NAMESPACE
from tests.recovery.site import MODEL, OWN_KINDS, Site

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainablemodel import TrainableModel
from espalier.cli.adopt import adopt, described
from espalier.cli.kubectl import Kubectl
from espalier.core.run.continued import CONTINUES
from espalier.kube.objects import Body, ObjectKey


class SiteKubectl(Kubectl):
    """What kubectl would do, on the site's API server; the volume is mounted here."""

    def __init__(self, site: Site) -> None:
        super().__init__(NAMESPACE)
        self._site = site
        self._loop = asyncio.get_running_loop()

    def volume(self, model: TrainableModel) -> Path:
        return self._site.stage.volume

    def model(self, name: str) -> TrainableModel:
        return TrainableModel.model_validate(self._site.stage.body("TrainableModel", name))

    def checkpoints(self, model: str) -> list[Checkpoint]:
        return [
            Checkpoint.model_validate(self._site.stage.body("Checkpoint", name))
            for name in self._site.names()
        ]

    def create(self, manifest: dict[str, Any], *, dry_run: bool = False) -> None:
        for body in manifest["items"]:
            made = self._site.stage.cluster.create("Checkpoint", body)
            asyncio.run_coroutine_threadsafe(made, self._loop).result()


async def lose_everything(site: Site) -> None:
    cluster = site.stage.cluster
    for key in [*cluster.objects]:
        if key.namespace == NAMESPACE and key.kind in OWN_KINDS:
            await cluster.delete(key)
    await site.reach(lambda: not site.stage.trainers, "every pod is gone")
    assert not site.names()


async def test_the_tree_comes_back_and_the_run_goes_on_where_it_was(site: Site) -> None:
    await site.pin("arith-000001", "Branch")
    await site.serves("arith-000001")
    await site.train(2)
    before = {name: site.spec(name) for name in site.names()}
    figures = metrics(site, "arith-b2-000002")
    spec = site.stage.body("TrainableModel", MODEL)["spec"]
    run: Body = site.stage.body("TrainingRun", MODEL)
    await lose_everything(site)
    await site.stage.apply("TrainableModel", MODEL, spec)
    await site.says("TrainableModel", MODEL, "Ready")
    found = await asyncio.to_thread(
        adopt, SiteKubectl(site), MODEL, volume=None, image="", dry_run=False
    )
    site.say("$ espalier adopt --model arith")
    for line in (lines := described(found, dry_run=False)):
        site.say(line)
    uid = run["metadata"]["uid"]
    assert any(f"{CONTINUES}: {uid}" in line for line in lines)
    assert {name: site.spec(name) for name in site.names()} == before
    assert metrics(site, "arith-b2-000002") == figures
    again = {
        "metadata": {
            "name": MODEL,
            "namespace": NAMESPACE,
            "annotations": {CONTINUES: uid},
        },
        "spec": run["spec"],
    }
    await site.stage.cluster.apply("TrainingRun", again, manager="kubectl")
    # The head takes up the branch and the term that training was on.
    await site.serves("arith-b2-000003")
    head = site.stage.body("CheckpointHead", MODEL)["status"]
    assert (head["branch"], head["term"]) == ("b2", 2)
    key = ObjectKey("TrainingRun", NAMESPACE, MODEL)
    await site.reach(
        lambda: site.stage.cluster.objects[key].get("status", {}).get("step") == 5, "5 steps"
    )
    assert await site.train(1) == ["arith-b2-000004"]
    assert site.optimizer_steps("arith-b2-000004") == 4
    await site.reach(lambda: site.stage.cluster.objects[key]["status"]["step"] == 6, "6 steps")
    site.show("Checkpoint")
    site.show("CheckpointHead")


async def test_a_run_that_continues_what_is_not_there_waits_and_says_so(site: Site) -> None:
    run: Body = site.stage.body("TrainingRun", MODEL)
    await site.stage.cluster.delete(ObjectKey("TrainingRun", NAMESPACE, MODEL))
    strange = {"name": MODEL, "namespace": NAMESPACE, "annotations": {CONTINUES: "nobody"}}
    await site.stage.cluster.apply(
        "TrainingRun", {"metadata": strange, "spec": run["spec"]}, manager="kubectl"
    )
    message = await site.says("TrainingRun", MODEL, "ContinuesUnknown")
    assert "espalier adopt --model arith" in message


def metrics(site: Site, name: str) -> Any:
    """The figures on record of a checkpoint, which its step and its successor's told."""
    return site.stage.body("Checkpoint", name)["metadata"]["annotations"]["espalier.dev/metrics"]
