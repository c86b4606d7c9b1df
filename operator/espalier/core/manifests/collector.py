"""The collector: a Job that removes the bytes of deleted checkpoints from the volume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from espalier.api.checkpoint import Checkpoint
from espalier.api.podtemplate import PodTemplate
from espalier.core.manifests.folders import folders_container, to_collect
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.intent import Manifest
from espalier.core.manifests.job import job_spec
from espalier.core.manifests.labels import FOLDERS_CONTAINER, child_labels
from espalier.core.manifests.pod import (
    VOLUME_PATH,
    Container,
    Requests,
    pod_metadata,
    pod_spec,
    weights,
)
from espalier.core.manifests.queue import queue_labels
from espalier.core.names import collector_name

_HANDED = "espalier.dev/checkpoints"
_REQUESTS = Requests("50m", "128Mi")
_RETRIES = 2
_LIMIT_SECONDS = 600
# Long enough to be read, and no longer where no operator is left to remove it.
_KEPT_SECONDS = 3600
_COMMAND = ("python", "-m", "espalier.trainer.jobs.collector")


def collector_job(
    batch: Sequence[Checkpoint],
    claim: str,
    settings: ChildSettings,
    *,
    orphaned: bool,
    template: PodTemplate | None = None,
) -> Manifest:
    """The Job for these checkpoints of one model on a claim; ``orphaned``: the model is gone.

    It has no owner: the model may be gone, and nothing waits for it.
    """
    model, namespace = batch[0].spec.model_ref.name, batch[0].metadata.namespace
    labels = child_labels("collector", model)
    whole = weights(claim)
    container = Container(
        name="collector",
        image=settings.images.trainer,
        requests=_REQUESTS,
        env={"ESPALIER_VOLUME": VOLUME_PATH},
        mounts=to_collect(whole, model, orphaned=orphaned),
        command=_COMMAND,
        args=(
            "--model",
            model,
            *(["--orphaned"] if orphaned else []),
            *(checkpoint.spec.digest for checkpoint in batch),
        ),
    )
    pod = pod_spec(
        container,
        template,
        grace_seconds=30,
        init_containers=(folders_container(whole, model, container.image, template, writes=True),),
        pull_secrets=settings.pull_secrets,
        assigned_ids=settings.assigned_ids,
        tmp_size=settings.tmp_size,
    )
    spec = job_spec(
        pod,
        pod_metadata(labels, template),
        template,
        containers=("collector", FOLDERS_CONTAINER),
        retries=_RETRIES,
        seconds=_LIMIT_SECONDS,
    )
    names = [checkpoint.metadata.name for checkpoint in batch]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": collector_name(model),
            "namespace": namespace,
            "labels": labels | queue_labels(template),
            "annotations": {_HANDED: json.dumps(names)},
        },
        "spec": {**spec, "ttlSecondsAfterFinished": _KEPT_SECONDS},
    }


def handed(job: Manifest | None) -> frozenset[str]:
    """The names of the checkpoints that a collector's Job was made for."""
    annotations: dict[str, Any] = (job or {"metadata": {}})["metadata"].get("annotations", {})
    return frozenset(json.loads(annotations.get(_HANDED, "[]")))
