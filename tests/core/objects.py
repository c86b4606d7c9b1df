"""Objects of the four kinds as the API server would hold them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.commits import Commit
from espalier.core.checkpoints.commits import run_identity
from espalier.core.manifests.labels import (
    MEASURED_ANNOTATION,
    METRICS_ANNOTATION,
    RUN_STEP_ANNOTATION,
    RUN_UID_ANNOTATION,
)
from espalier.core.names import checkpoint_name
from espalier.core.volume import checkpoint_uri

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T00:01:00Z"
Body = dict[str, Any]


def digest(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def metadata(name: str, **changes: Any) -> Body:
    return {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "generation": 1,
        "creationTimestamp": NOW,
        **changes,
    }


def condition(type_: str, status: str, reason: str = "Because", **changes: Any) -> Body:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": NOW,
        **changes,
    }


def checkpoint(
    model: str = "m",
    step: int = 1,
    *,
    branch: str = "main",
    term: int = 1,
    parent: str = "",
    reward: str | None = None,
    measured: Body | None = None,
    run: str = "r",
    run_step: int = 0,
    ready: bool = True,
    created: str = NOW,
    name: str = "",
    content: str = "",
    uri: str = "",
    labels: Body | None = None,
    stalled: str = "",
    annotations: Body | None = None,
) -> Checkpoint:
    """``content`` is what the digest is of; ``stalled`` the reason why its bytes were refused.

    ``reward`` was measured of it before; ``measured`` is what its step says of others.
    """
    name = name or checkpoint_name(model, branch, step)
    sha = digest(content or name)
    metrics = {"reward/mean": reward} if reward is not None else {}
    written = {
        METRICS_ANNOTATION: "{}",
        MEASURED_ANNOTATION: json.dumps(measured or {}),
        RUN_STEP_ANNOTATION: str(run_step or step),
        RUN_UID_ANNOTATION: f"uid-{run}",
        **(annotations or {}),
    }
    spec = {
        "modelRef": {"name": model},
        "runRef": {"name": run},
        "step": step,
        "branch": branch,
        "term": term,
        "uri": uri or checkpoint_uri(sha),
        "digest": sha,
        "loraRank": 16,
        "hyperparameters": {"learningRate": "1e-4", "groupSize": 8},
    }
    if parent:
        spec["parentRef"] = {"name": parent}
    refused = [condition("Stalled", "True", stalled)] if stalled else []
    status = {
        "conditions": [condition("Ready", str(ready and not stalled)), *refused],
        "metrics": [{"name": n, "value": v} for n, v in metrics.items()],
    }
    meta = metadata(name, annotations=written, creationTimestamp=created, labels=labels or {})
    return Checkpoint.model_validate({"metadata": meta, "spec": spec, "status": status})


def line(model: str, steps: int, **changes: Any) -> list[Checkpoint]:
    """The main branch from step 1."""
    return [
        checkpoint(
            model, n, parent=checkpoint_name(model, "main", n - 1) if n > 1 else "", **changes
        )
        for n in range(1, steps + 1)
    ]


def model(name: str = "m", *, status: Body | None = None, **spec: Any) -> TrainableModel:
    body = {
        "source": {"base": {"image": "registry.example/tiny:1"}},
        "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
        **spec,
    }
    return TrainableModel.model_validate(
        {"metadata": metadata(name), "spec": body, "status": status or {}}
    )


def head(
    model_name: str = "m",
    mode: str = "Track",
    pin: str = "",
    *,
    name: str = "",
    generation: int = 1,
    status: Body | None = None,
    **spec: Any,
) -> CheckpointHead:
    body = {"modelRef": {"name": model_name}, "mode": mode, **spec}
    if pin:
        body["checkpointRef"] = {"name": pin}
    return CheckpointHead.model_validate(
        {
            "metadata": metadata(name or model_name, generation=generation),
            "spec": body,
            "status": status or {},
        }
    )


def tracks(generation: int) -> Body:
    """``status.agreed`` of a head that tracks."""
    return {"generation": generation, "mode": "Track"}


def pins(generation: int, name: str, on_pin: str) -> Body:
    """``status.agreed`` of a head that holds a checkpoint."""
    ref = {"name": name}
    return {"generation": generation, "mode": "Pin", "checkpointRef": ref, "onPin": on_pin}


def run(
    name: str = "r", *, status: Body | None = None, meta: Body | None = None, **spec: Any
) -> TrainingRun:
    body = {
        "modelRef": {"name": "m"},
        "loss": {"name": "importance_sampling"},
        "learningRate": "1e-4",
        "steps": 10,
        "taskset": {"seed": 1, "configMap": {"name": "tasks"}},
        **spec,
    }
    return TrainingRun.model_validate(
        {"metadata": metadata(name, **(meta or {})), "spec": body, "status": status or {}}
    )


def commit(
    step: int,
    *,
    model_name: str = "m",
    branch: str = "main",
    term: int = 1,
    parent: str = "",
    index: int = 1,
    variant: str = "",
) -> Commit:
    name = checkpoint_name(model_name, branch, step)
    return Commit(
        index=index,
        name=name,
        model=model_name,
        run=run_identity("r", "uid-r"),
        step=step,
        run_step=step,
        branch=branch,
        term=term,
        parent=digest(parent) if parent else "",
        parent_name=parent,
        digest=digest(name + variant),
        size_bytes=1,
        lora_rank=16,
        learning_rate=1e-4,
        group_size=8,
        loss="importance_sampling",
        metrics={"rollout/reward/mean": 0.5},
        created=NOW,
    )
