"""Good manifests of the four kinds, and a way to spoil one field of them."""

from __future__ import annotations

import copy
import json
from typing import Any

from dev.apiserver import ApiServer

from espalier.api.crds import KINDS
from espalier.api.meta import API_VERSION

Manifest = dict[str, Any]
DIGEST = "sha256:" + "a" * 64
ABSENT = object()


def manifest(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


MODEL = manifest(
    "TrainableModel",
    "arith",
    {
        "source": {"base": {"image": "registry.example/model:1"}},
        "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
    },
)
RUN = manifest(
    "TrainingRun",
    "arith",
    {
        "modelRef": {"name": "arith"},
        "loss": {"name": "importance_sampling"},
        "learningRate": "1e-4",
        "steps": 20,
        "taskset": {
            "seed": 1,
            "reasoningGym": {"dataset": "basic_arithmetic", "config": {"max_terms": 2, "p": 0.5}},
        },
    },
)
CLIENT_RUN = manifest(
    "TrainingRun", "arith", {"modelRef": {"name": "arith"}, "driver": "Client", "steps": 20}
)
HEAD = manifest("CheckpointHead", "arith", {"modelRef": {"name": "arith"}, "mode": "Track"})
CHECKPOINT = manifest(
    "Checkpoint",
    "arith-000001",
    {
        "modelRef": {"name": "arith"},
        "runRef": {"name": "arith"},
        "step": 1,
        "branch": "main",
        "term": 1,
        "uri": "pvc://weights/checkpoints/sha256-aaaa",
        "digest": DIGEST,
    },
)


def edited(original: Manifest, path: str, value: object) -> Manifest:
    """A copy with one field set, or removed by ABSENT; the path is dotted."""
    result = copy.deepcopy(original)
    *parents, last = path.split(".")
    node = result
    for parent in parents:
        node = node.setdefault(parent, {})
    if value is ABSENT:
        node.pop(last, None)
    else:
        node[last] = value
    return result


def named(original: Manifest, name: str) -> Manifest:
    return edited(original, "metadata.name", name)


def apply(server: ApiServer, namespace: str, *objects: Manifest) -> None:
    """Applies as a GitOps controller does: server-side, unknown fields refused."""
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    server.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=content)


def try_out(server: ApiServer, namespace: str, candidate: Manifest) -> None:
    """Has the API server validate an object without storing it."""
    plural = next(kind.plural for kind in KINDS if kind.name == candidate["kind"])
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/{plural}/{candidate['metadata']['name']}"
    server.try_out(path, candidate)


def read(server: ApiServer, namespace: str, resource: str, name: str) -> Manifest:
    found: Manifest = json.loads(
        server.kubectl("get", resource, name, "-n", namespace, "-o", "json")
    )
    return found


def write_status(
    server: ApiServer, namespace: str, resource: str, name: str, status: Manifest
) -> None:
    """Merges into the status subresource, as only the operator may."""
    server.kubectl(
        *("patch", resource, name, "-n", namespace, "--subresource=status", "--type=merge"),
        *("-p", json.dumps({"status": status})),
    )
