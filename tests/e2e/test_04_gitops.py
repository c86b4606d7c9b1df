"""Argo CD rolls a served model back on real pods: a pin by a commit, and its revert."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from dev.gitops import ArgoCd
from tests.e2e.gateway import Answer, Gateway
from tests.e2e.kubectl import Kubectl
from tests.e2e.manifests import Object, head, model
from tests.e2e.run import served
from tests.gitops.argocd import Application
from tests.gitops.artifacts import directory, save_lines
from tests.gitops.repository import Repository

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class RealCluster:
    """The cluster of these tests as Argo CD's processes see it."""

    user: Kubectl

    @property
    def kubeconfig(self) -> Path:
        return self.user.kubeconfig

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.user(*arguments, stdin=stdin)

    def read(self, path: str) -> Object:
        found: Object = json.loads(self.user("get", "--raw", path))
        return found

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        self.user.wait(what, condition)


@pytest.fixture
def repository(tmp_path: Path, images: dict[str, str]) -> Repository:
    """What the team of these tests declares: the model and the head that are there."""
    made = Repository(tmp_path)
    for file in (made.tree / "model").iterdir():
        file.unlink()
    declare(made, "model.yaml", model("tiny", images["tiny-model"]))
    declare(made, "head.yaml", head("tiny", "Track"))
    made.commit("Declare what is served")
    return made


def declare(repository: Repository, file: str, body: Object) -> None:
    (repository.tree / "model" / file).write_text(yaml.safe_dump(body, sort_keys=False))


@pytest.fixture
async def application(
    kubectl: Kubectl, trained: str, repository: Repository, tmp_path: Path
) -> AsyncIterator[Application]:
    """Argo CD owns what the team declares; in the end the objects stay."""
    scenario = directory("argocd/a_revert_rolls_real_pods_back")
    with ArgoCd(RealCluster(kubectl)) as argocd:
        made = Application(argocd, repository, kubectl.namespace, tmp_path / "states.json")
        await made.create()
        try:
            yield made
        finally:
            save_lines([await made.get()], scenario / "application.json")
            await made.stop()
            save_lines(made.states(), scenario / "states.jsonl")
            heads = kubectl("get", "ckhead,tmodel", "-o=yaml", "--show-managed-fields")
            (scenario / "objects.yaml").write_text(heads)
    kubectl("delete", "namespace", "argocd", "--wait=false")


async def test_a_revert_rolls_the_served_model_back(
    kubectl: Kubectl, gateway: Gateway, repository: Repository, application: Application
) -> None:
    async def serves(checkpoint: str) -> Answer:
        await asyncio.to_thread(served, kubectl, "tiny", checkpoint)
        return await asyncio.to_thread(gateway.serves, "tiny", checkpoint)

    await application.synced(repository.git("rev-parse", "HEAD"))
    newest = kubectl.get("ckhead", "tiny")["status"]["current"]["name"]
    before = await serves(newest)
    pin = head("tiny", "Pin", "tiny-000004", onPin="Continue")
    declare(repository, "head.yaml", pin)
    await application.synced(repository.commit("Pin tiny to tiny-000004"))
    assert await serves("tiny-000004") != before
    await application.synced(repository.revert())
    assert await serves(newest) == before
