"""The scrubber: a Job that reads stored bytes through and compares them with their digests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.folders import folders_container, to_scrub
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.intent import Manifest, child
from espalier.core.manifests.job import job_spec
from espalier.core.manifests.labels import FOLDERS_CONTAINER, child_labels
from espalier.core.manifests.pod import (
    VOLUME_PATH,
    Container,
    Requests,
    claim,
    pod_metadata,
    pod_spec,
)
from espalier.core.manifests.queue import queue_labels
from espalier.core.names import scrubber_name

_HANDED = "espalier.dev/scrubbed"
_REQUESTS = Requests("50m", "128Mi")
_RETRIES = 2
_COMMAND = ("python", "-m", "espalier.trainer.jobs.scrubber")


@dataclass(frozen=True)
class Handed:
    """What a Job was made for: the names of its checkpoints, and whether the base comes first."""

    names: tuple[str, ...]
    base: bool


NOTHING = Handed((), base=False)


def scrubber_job(
    model: TrainableModel, batch: Sequence[Checkpoint], base: str, settings: ChildSettings
) -> Manifest:
    """The Job that reads these checkpoints, and before them the base of that digest, if any.

    No time bounds it: how long a slow volume takes is not known. It writes nothing.
    """
    labels = child_labels("scrubber", model.metadata.name)
    rate = model.spec.storage.scrub.mebibytes_per_second
    container = Container(
        name="scrubber",
        image=settings.images.trainer,
        requests=_REQUESTS,
        env={"ESPALIER_VOLUME": VOLUME_PATH, "ESPALIER_MODEL": model.metadata.name},
        mounts=to_scrub(model),
        command=_COMMAND,
        args=(
            "--mebibytes-per-second",
            str(rate),
            *(["--base", base] if base else []),
            *(checkpoint.spec.digest for checkpoint in batch),
        ),
    )
    template = model.spec.jobs.template
    pod = pod_spec(
        container,
        template,
        grace_seconds=30,
        init_containers=(
            folders_container(claim(model), model.metadata.name, container.image, template),
        ),
        pull_secrets=settings.pull_secrets,
        tmp_size=settings.tmp_size,
        assigned_ids=settings.assigned_ids,
    )
    metadata = pod_metadata(labels, template)
    job = child(
        "batch/v1",
        "Job",
        scrubber_name(model.metadata.name),
        labels=labels | queue_labels(template),
        owner_kind="TrainableModel",
        owner=model.metadata,
        spec=job_spec(
            pod,
            metadata,
            template,
            containers=("scrubber", FOLDERS_CONTAINER),
            retries=_RETRIES,
            seconds=None,
        ),
    )
    names = [checkpoint.metadata.name for checkpoint in batch]
    job["metadata"]["annotations"][_HANDED] = json.dumps({"names": names, "base": bool(base)})
    return job


def handed(job: Mapping[str, Any] | None) -> Handed:
    """What a scrubber's Job was made for, as its annotations say."""
    annotations: dict[str, str] = (job or {"metadata": {}})["metadata"].get("annotations", {})
    given: dict[str, Any] = json.loads(annotations.get(_HANDED, "{}"))
    return Handed(tuple(given.get("names", ())), bool(given.get("base")))
