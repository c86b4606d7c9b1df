"""The real API server takes the children, and makes their pods under the restricted profile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from dev.apiserver import ApiServer, ApiServerError
from tests.api.cases import TEMPLATE
from tests.kube.children import HUB_BASE, VOLUME_BASE, children_of, model_of, run_of

from espalier.core.manifests.intent import is_current
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.objects import ObjectKey, key_of

# The garbage collector looks for new kinds every 30 s.
LIMIT_SECONDS = 120
MANAGED = {"app.kubernetes.io/managed-by": "espalier"}


@pytest.fixture
def restricted(apiserver: ApiServer, namespace: str) -> str:
    """A namespace that refuses any pod outside the restricted profile."""
    label = "pod-security.kubernetes.io/enforce=restricted"
    apiserver.kubectl("label", "namespace", namespace, label)
    apiserver.kubectl("create", "serviceaccount", "espalier-runner", "-n", namespace)
    return namespace


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what other processes of the cluster do."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.1)


async def owners(kubernetes: KubernetesCluster, namespace: str) -> tuple[Any, Any]:
    """Model and run as the API server knows them, so that their children are not collected."""
    model, run = model_of(namespace), run_of(namespace)
    spec = run.spec.wire()
    # Defaults are spelt out there, and a kl without a reference is refused.
    del spec["kl"]
    bodies = {
        "TrainableModel": {
            "metadata": {"name": "arith", "namespace": namespace},
            "spec": model.spec.wire(),
        },
        "TrainingRun": {
            "metadata": {"name": "arith-20", "namespace": namespace},
            "spec": spec,
        },
    }
    uids = [(await kubernetes.apply(k, b))["metadata"]["uid"] for k, b in bodies.items()]
    return model_of(namespace, uids[0]), run_of(namespace, uids[1])


async def test_every_child_gets_its_pod(kubernetes: KubernetesCluster, restricted: str) -> None:
    model, run = await owners(kubernetes, restricted)
    for child in children_of(model, run):
        await kubernetes.apply(child["kind"], child)

    async def all_there() -> bool:
        pods = await kubernetes.list("Pod", restricted, MANAGED)
        roles = {pod["metadata"]["labels"]["espalier.dev/role"] for pod in pods}
        return roles == {"trainer", "rollout", "importer", "runner"}

    await eventually(all_there)


async def test_a_child_stays_current_after_the_server_fills_in_defaults(
    kubernetes: KubernetesCluster, restricted: str
) -> None:
    model, run = await owners(kubernetes, restricted)
    for child in children_of(model, run):
        await kubernetes.apply(child["kind"], child)
        live = await kubernetes.get(key_of(child["kind"], child))
        assert is_current(live, child)


@pytest.mark.parametrize("base", [VOLUME_BASE, HUB_BASE])
async def test_every_source_of_a_base_and_every_template_field_is_accepted(
    kubernetes: KubernetesCluster, restricted: str, base: dict[str, Any]
) -> None:
    part = {"template": TEMPLATE}
    model = model_of(restricted, source={"base": base}, trainer=part, rollout=part)
    for child in children_of(model, run_of(restricted)):
        assert await kubernetes.apply(child["kind"], child)


async def test_deleting_the_model_deletes_its_children(
    kubernetes: KubernetesCluster, restricted: str
) -> None:
    model, run = await owners(kubernetes, restricted)
    children = children_of(model, run)
    for child in children:
        await kubernetes.apply(child["kind"], child)

    await kubernetes.delete(ObjectKey("TrainableModel", restricted, "arith"))
    await kubernetes.delete(ObjectKey("TrainingRun", restricted, "arith-20"))

    async def all_gone() -> bool:
        found = [await kubernetes.get(key_of(child["kind"], child)) for child in children]
        return found == [None] * len(children)

    await eventually(all_gone)


async def test_the_profile_of_the_namespace_is_enforced(
    apiserver: ApiServer, restricted: str
) -> None:
    """Without this the tests above would pass in a namespace that takes any pod."""
    with pytest.raises(ApiServerError, match="violates PodSecurity"):
        apiserver.kubectl("run", "open", "--image=open", "-n", restricted)
