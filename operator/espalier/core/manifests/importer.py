"""The importer: a Job that copies a model's base to the volume, once."""

from __future__ import annotations

from espalier.api.trainablemodel import Base, TrainableModel
from espalier.core.manifests.intent import Manifest, child
from espalier.core.manifests.job import job_spec
from espalier.core.manifests.labels import child_labels
from espalier.core.manifests.pod import (
    VOLUME_PATH,
    Container,
    Mount,
    Requests,
    claim,
    pod_spec,
)
from espalier.core.manifests.settings import ChildSettings
from espalier.core.names import importer_name

_REQUESTS = Requests("250m", "512Mi")
_RETRIES = 3
_LIMIT_SECONDS = 6 * 3600
_COMMAND = ("python", "-m", "espalier.trainer.importer")
_SOURCE = "/source"


def importer_job(model: TrainableModel, settings: ChildSettings) -> Manifest:
    """The Job that imports the base of ``spec.source``; ValueError for a fork of a checkpoint."""
    base = model.spec.source.base
    if base is None:
        raise ValueError("spec.source.base: a fork of a checkpoint has no base to import")
    name, labels = model.metadata.name, child_labels("importer", model.metadata.name)
    container = Container(
        name="importer",
        image=settings.images.trainer,
        requests=_REQUESTS,
        env={"ESPALIER_VOLUME": VOLUME_PATH},
        mounts=(claim(model), *_source(base)),
        command=_COMMAND,
        args=_arguments(base),
    )
    pod = pod_spec(container, None, grace_seconds=30, init_containers=_copies(base))
    spec = job_spec(pod, labels, container="importer", retries=_RETRIES, seconds=_LIMIT_SECONDS)
    return child(
        "batch/v1",
        "Job",
        importer_name(name),
        labels=labels,
        owner_kind="TrainableModel",
        owner=model.metadata,
        spec=spec,
    )


def _arguments(base: Base) -> tuple[str, ...]:
    if base.hugging_face is None:
        return ("--directory", _SOURCE)
    return ("--hugging-face", f"{base.hugging_face.repository}@{base.hugging_face.revision}")


def _source(base: Base) -> tuple[Mount, ...]:
    """Where the importer finds the model's files, unless it fetches them itself."""
    if base.image is not None:
        return (Mount("source", {"emptyDir": {}}, _SOURCE),)
    if base.persistent_volume_claim is not None:
        given = base.persistent_volume_claim
        source = {"persistentVolumeClaim": {"claimName": given.claim_name}}
        return (Mount("source", source, _SOURCE, read_only=True, sub_path=given.path),)
    return ()


def _copies(base: Base) -> tuple[Container, ...]:
    """Image volumes are not everywhere yet, so the model's image copies itself."""
    if base.image is None:
        return ()
    copy = Container(
        name="copy",
        image=base.image,
        requests=_REQUESTS,
        env={},
        mounts=_source(base),
        command=("cp", "-rL", "/models/.", f"{_SOURCE}/"),
    )
    return (copy,)
