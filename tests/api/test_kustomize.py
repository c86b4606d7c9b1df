"""kustomize carries prefixes and hashes into our references, with what gitops/kustomize tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.apiserver import binary

from espalier.api.crds import KINDS, definition

COMPONENT = Path(__file__).parents[2] / "gitops/kustomize"
# How a reference is recognised: the parent of a ``name``, or a field that is a name itself.
NAMED = ("Ref", "configMap", "imagePullSecrets")
NAMES = ("claimName", "priorityClassName", "queueName", "runtimeClassName")
OVERLAY = """
components: [{}]
namePrefix: dev-
configMapGenerator: [{{name: sums, literals: ["tasks.jsonl=x"]}}]
secretGenerator: [{{name: hub, literals: [token=secret]}}]
resources: [objects.yaml]
"""
OBJECTS = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: weights}
---
apiVersion: espalier.dev/v1alpha1
kind: TrainableModel
metadata: {name: m}
spec:
  source:
    base: {huggingFace: {repository: a/b, revision: x, tokenSecretRef: {name: hub, key: token}}}
  trainer: {template: {env: [{name: A, valueFrom: {configMapKeyRef: {name: sums, key: k}}}]}}
  storage: {persistentVolumeClaim: {claimName: weights}}
---
apiVersion: espalier.dev/v1alpha1
kind: TrainingRun
metadata: {name: r}
spec:
  modelRef: {name: m}
  taskset: {configMap: {name: sums}}
  rewards:
  - {name: style, python: {configMapRef: {name: sums}}}
  - {name: kind, judge: {modelRef: {name: m}, rubric: kindness}}
---
apiVersion: espalier.dev/v1alpha1
kind: CheckpointHead
metadata: {name: m}
spec: {modelRef: {name: m}, mode: Pin, checkpointRef: {name: m-000001}}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The objects of an overlay, by kind."""
    overlay = tmp_path_factory.mktemp("overlay")
    (overlay / "kustomization.yaml").write_text(OVERLAY.format(os.path.relpath(COMPONENT, overlay)))
    (overlay / "objects.yaml").write_text(OBJECTS)
    command = [str(binary("kubectl")), "kustomize", str(overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {body["kind"]: body for body in yaml.safe_load_all(done.stdout)}


def name(built: dict[str, Any], kind: str) -> str:
    found: str = built[kind]["metadata"]["name"]
    assert found.startswith("dev-")
    return found


def test_a_run_follows_its_model_and_its_generated_files(built: Any) -> None:
    spec = built["TrainingRun"]["spec"]
    assert spec["modelRef"]["name"] == name(built, "TrainableModel")
    assert spec["taskset"]["configMap"]["name"] == name(built, "ConfigMap")
    style, kind = spec["rewards"]
    assert style["python"]["configMapRef"]["name"] == name(built, "ConfigMap")
    assert kind["judge"]["modelRef"]["name"] == name(built, "TrainableModel")
    assert name(built, "ConfigMap") != "dev-sums"


def test_a_model_follows_its_claim_its_token_and_its_variables(built: Any) -> None:
    spec = built["TrainableModel"]["spec"]
    claim = spec["storage"]["persistentVolumeClaim"]["claimName"]
    assert claim == name(built, "PersistentVolumeClaim")
    token = spec["source"]["base"]["huggingFace"]["tokenSecretRef"]["name"]
    assert token == name(built, "Secret")
    (variable,) = spec["trainer"]["template"]["env"]
    assert variable["valueFrom"]["configMapKeyRef"]["name"] == name(built, "ConfigMap")


def test_a_head_follows_its_model_and_a_checkpoint_that_no_file_declares_stays(built: Any) -> None:
    spec = built["CheckpointHead"]["spec"]
    assert spec["modelRef"]["name"] == name(built, "TrainableModel")
    assert spec["checkpointRef"]["name"] == "m-000001"


def test_every_reference_of_every_kind_is_told() -> None:
    told = yaml.safe_load((COMPONENT / "nameReference.yaml").read_text())["nameReference"]
    fields = [(s["kind"], s["path"]) for entry in told for s in entry["fieldSpecs"]]
    assert sorted(fields) == sorted(
        (kind.name, path) for kind in KINDS for path in references(_spec(kind), "spec")
    )


def _spec(kind: Any) -> dict[str, Any]:
    (version,) = definition(kind)["spec"]["versions"]
    spec: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def references(schema: dict[str, Any], path: str) -> Iterator[str]:
    parent = path.rpartition("/")[2]
    for field, node in schema.get("properties", {}).items():
        place = f"{path}/{field}"
        if field in NAMES or (field == "name" and parent.endswith(NAMED)):
            yield place
        yield from references(node, place)
    if "items" in schema:
        yield from references(schema["items"], path)
