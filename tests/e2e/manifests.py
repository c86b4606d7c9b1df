"""The objects that the end-to-end tests apply."""

from __future__ import annotations

import json
import random
from typing import Any

Object = dict[str, Any]
API = "espalier.dev/v1alpha1"


def claim() -> Object:
    """The claim for bases and checkpoints."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def user() -> list[Object]:
    """A user who may sample, train and read, and nothing else."""
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "e2e-user"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": "e2e-user"},
            "rules": [
                {
                    "apiGroups": ["espalier.dev"],
                    "resources": ["trainablemodels"],
                    "verbs": ["get"],
                },
                {
                    "apiGroups": ["espalier.dev"],
                    "resources": ["trainablemodels/sample"],
                    "verbs": ["create"],
                },
                {
                    "apiGroups": ["espalier.dev"],
                    "resources": ["trainingruns"],
                    "verbs": ["get", "update"],
                },
            ],
        },
        _bound("e2e-user", "Role", "e2e-user"),
    ]


def tinker_user() -> list[Object]:
    """A user who may make models and train them."""
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "tinker"}},
        _bound("tinker", "ClusterRole", "edit"),
    ]


def _bound(account: str, kind: str, role: str) -> Object:
    """A service account's right to a Role or ClusterRole, under its own name."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account}],
    }


def model(name: str, image: str = "", checkpoint: str = "", **spec: Any) -> Object:
    """A fork of the tiny base, or of a checkpoint."""
    source = {"checkpointRef": {"name": checkpoint}} if checkpoint else {"base": {"image": image}}
    small = {"resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}}
    return {
        "apiVersion": API,
        "kind": "TrainableModel",
        "metadata": {"name": name},
        "spec": {
            "source": source,
            "adapter": {"type": "LoRA", "rank": 8, "alpha": 16},
            "trainer": {"template": small},
            "rollout": {"replicas": 1, "maxModelTokens": 128, "template": small},
            "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
            **spec,
        },
    }


def tasks(name: str = "digits", size: int = 64, seed: int = 1) -> Object:
    """Repeat the digit: a task that a random character model gets right now and then."""
    chosen = random.Random(seed)
    rows = [
        {"id": f"digit-{index}", "prompt": f"{digit}=", "answer": str(digit)}
        for index, digit in enumerate(chosen.choices(range(10), k=size))
    ]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"tasks.jsonl": "\n".join(json.dumps(row) for row in rows)},
    }


def client_run(name: str, model_name: str, steps: int, **spec: Any) -> Object:
    """A run that a script drives, which decides what the run leaves out."""
    spec = {"modelRef": {"name": model_name}, "driver": "Client", "steps": steps, **spec}
    return {"apiVersion": API, "kind": "TrainingRun", "metadata": {"name": name}, "spec": spec}


def run(name: str, model_name: str, steps: int, **spec: Any) -> Object:
    """A run of the runner on the digit tasks."""
    return {
        "apiVersion": API,
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {
            "modelRef": {"name": model_name},
            "driver": "Runner",
            "loss": {"name": "importance_sampling"},
            "groupSize": 8,
            "groupsPerStep": 8,
            "learningRate": "5e-3",
            "steps": steps,
            "sampling": {"temperature": "1.0", "maxTokens": 2},
            "taskset": {
                "seed": 1,
                "size": 64,
                "configMap": {"name": "digits"},
                "answerExtraction": "LastNumber",
            },
            **spec,
        },
    }


def head(name: str, mode: str = "Track", checkpoint: str = "", **spec: Any) -> Object:
    """A head; Pin with a checkpoint."""
    reference = {"checkpointRef": {"name": checkpoint}} if checkpoint else {}
    return {
        "apiVersion": API,
        "kind": "CheckpointHead",
        "metadata": {"name": name},
        "spec": {
            "modelRef": {"name": spec.pop("model", name)},
            "mode": mode,
            **reference,
            **spec,
        },
    }
