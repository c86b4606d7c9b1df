"""How a cluster's administrator bounds the memory of pods whose templates set no limit."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from dev.apiserver import ApiServer
from tests.kube.children import BASE, SETTINGS, model_of, pod_of

from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.trainer import trainer_statefulset

Body = dict[str, Any]
LIMIT_RANGE = """
apiVersion: v1
kind: LimitRange
metadata: {name: memory}
spec:
  limits:
  - {type: Container, default: {memory: 48Gi}, max: {memory: 96Gi}}
"""


@pytest.fixture(scope="module")
def bounded(apiserver: ApiServer) -> str:
    """A namespace with a LimitRange that the API server knows by now."""
    namespace = f"memory-{uuid.uuid4().hex[:8]}"
    apiserver.create_namespace(namespace)
    apiserver.kubectl("apply", "-n", namespace, "-f", "-", stdin=LIMIT_RANGE)
    return namespace


@pytest.mark.parametrize("role", ["trainer", "rollout"])
def test_a_limit_range_bounds_the_memory_of_every_container_that_its_template_leaves_open(
    apiserver: ApiServer, bounded: str, role: str
) -> None:
    def limits(**resources: Body) -> dict[str, str]:
        given = {role: {"template": {"resources": resources}}} if resources else {}
        model = model_of(namespace=bounded, **given)
        child = (
            trainer_statefulset(model, SETTINGS, base=BASE, replicas=1)
            if role == "trainer"
            else rollout_deployment(model, SETTINGS, base=BASE)
        )
        pod = {"apiVersion": "v1", "kind": "Pod", "spec": pod_of(child)}
        pod["metadata"] = {"name": role, "namespace": bounded}
        options = ("--dry-run=server", "-o", "json", "-f", "-")
        made = json.loads(apiserver.kubectl("create", *options, stdin=json.dumps(pod)))
        containers = [*made["spec"].get("initContainers", ()), *made["spec"]["containers"]]
        return {c["name"]: c["resources"]["limits"]["memory"] for c in containers}

    assert set(limits().values()) == {"48Gi"}
    own = limits(requests={"memory": "2Gi"}, limits={"memory": "64Gi"})
    assert set(own.values()) == {"64Gi"}
