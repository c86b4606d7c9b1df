"""The importer: a Job that copies a model's base, and adapter if any, to the volume, once.

The container ``importer`` opens strangers' bytes, and sees of the volume no more than the folder
that it brings them to. Once it has ended, ``place`` hashes what is there and puts it in place; it
opens nothing but the importer's small report.
"""

from __future__ import annotations

import json
from dataclasses import replace

from espalier.api.source import Base
from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.folders import folders_container, to_import, to_place
from espalier.core.manifests.installation import ChildSettings, HubSettings
from espalier.core.manifests.intent import Manifest, child
from espalier.core.manifests.job import job_spec
from espalier.core.manifests.labels import (
    FOLDERS_CONTAINER,
    IMPORTER_CONTAINER,
    PLACE_CONTAINER,
    child_labels,
)
from espalier.core.manifests.pod import (
    VOLUME_PATH,
    Container,
    Mount,
    Requests,
    Variable,
    claim,
    pod_metadata,
    pod_spec,
)
from espalier.core.manifests.queue import queue_labels
from espalier.core.names import importer_name

_REQUESTS = Requests("250m", "1Gi")
_RETRIES = 3
_LIMIT_SECONDS = 6 * 3600
_COMMAND = ("python", "-m", "espalier.trainer.jobs.importer")
_PLACE = ("python", "-m", "espalier.trainer.jobs.place")
_SOURCE = "/source"
_ADAPTER = "/adapter"
_CERTIFICATES = "/etc/espalier/hub-ca"


def importer_job(model: TrainableModel, settings: ChildSettings) -> Manifest:
    """The Job that imports the base of ``spec.source``; ValueError for a fork of a checkpoint."""
    base = model.spec.source.base
    if base is None:
        raise ValueError("spec.source.base: a fork of a checkpoint has no base to import")
    name, labels = model.metadata.name, child_labels("importer", model.metadata.name)
    template = model.spec.jobs.template
    importer, copies = _importer(model, base, settings)
    folders = folders_container(claim(model), name, importer.image, template, imports=True)
    pod = pod_spec(
        _place(model, importer),
        template,
        grace_seconds=30,
        init_containers=(folders, *copies, importer),
        pull_secrets=settings.pull_secrets,
        assigned_ids=settings.assigned_ids,
        tmp_size=settings.tmp_size,
    )
    metadata = pod_metadata(labels, template)
    spec = job_spec(
        pod,
        metadata,
        template,
        containers=(PLACE_CONTAINER, IMPORTER_CONTAINER, FOLDERS_CONTAINER),
        retries=_RETRIES,
        seconds=_LIMIT_SECONDS,
        copies=[copy.name for copy in copies],
    )
    return child(
        "batch/v1",
        "Job",
        importer_name(name),
        labels=labels | queue_labels(template),
        owner_kind="TrainableModel",
        owner=model.metadata,
        spec=spec,
    )


def _importer(
    model: TrainableModel, base: Base, settings: ChildSettings
) -> tuple[Container, tuple[Container, ...]]:
    """What opens the files of base and adapter, and what copies them out of images before."""
    adapter, size, weights = model.spec.source.adapter, settings.copy_size, claim(model)
    env = _told(model)
    if base.chat_template is not None:
        env["ESPALIER_CHAT_TEMPLATE"] = base.chat_template
    found = _mounts(base, "source", _SOURCE, size, weights)
    mounts = (*to_import(model), *found)
    args = _arguments(base, "--directory", "--hugging-face", _SOURCE)
    copies = _copies(base, "copy", found)
    if adapter is not None:
        found = _mounts(adapter, "adapter", _ADAPTER, size, weights)
        mounts += found
        args += _arguments(adapter, "--adapter", "--adapter-hugging-face", _ADAPTER)
        args += ("--model", model.metadata.name)
        copies += _copies(adapter, "copy-adapter", found)
    if any(b is not None and b.hugging_face is not None for b in (base, adapter)):
        env |= _hub_env(settings.hub)
        mounts += _certificates(settings.hub)
    for given, variable in ((base, "ESPALIER_BASE_TOKEN"), (adapter, "ESPALIER_ADAPTER_TOKEN")):
        if given and given.hugging_face and given.hugging_face.token_secret_ref:
            env[variable] = given.hugging_face.token_secret_ref
    importer = Container(
        name=IMPORTER_CONTAINER,
        image=settings.images.trainer,
        requests=_REQUESTS,
        env=env,
        mounts=mounts,
        command=_COMMAND,
        args=args,
        templated=True,
    )
    return importer, copies


def _place(model: TrainableModel, importer: Container) -> Container:
    """What puts in place what the importer brought, by the same order."""
    return Container(
        name=PLACE_CONTAINER,
        image=importer.image,
        requests=_REQUESTS,
        env=_told(model),
        mounts=to_place(model),
        command=_PLACE,
        args=importer.args,
        # Its home directory is /tmp, and Python may run what lies below that.
        apart=True,
    )


def _told(model: TrainableModel) -> dict[str, Variable]:
    return {
        "ESPALIER_VOLUME": VOLUME_PATH,
        "ESPALIER_MODEL": model.metadata.name,
        "ESPALIER_ADAPTER": json.dumps(model.spec.adapter.wire(), sort_keys=True),
    }


def _hub_env(hub: HubSettings) -> dict[str, str]:
    """The hub's client is online, for the image's servers are not, and goes the chart's way."""
    given = {
        "HF_ENDPOINT": hub.endpoint,
        # Programs disagree on the case.
        "HTTP_PROXY": hub.http_proxy,
        "http_proxy": hub.http_proxy,
        "HTTPS_PROXY": hub.https_proxy,
        "https_proxy": hub.https_proxy,
        "NO_PROXY": hub.no_proxy,
        "no_proxy": hub.no_proxy,
        "SSL_CERT_FILE": f"{_CERTIFICATES}/{hub.ca_key}" if hub.ca_config_map else "",
    }
    online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    online["ESPALIER_HUB_PATIENCE_SECONDS"] = str(hub.patience_seconds)
    return online | {name: value for name, value in given.items() if value}


def _certificates(hub: HubSettings) -> tuple[Mount, ...]:
    if not hub.ca_config_map:
        return ()
    source = {"configMap": {"name": hub.ca_config_map}}
    return (Mount("hub-ca", source, _CERTIFICATES, read_only=True),)


def _arguments(base: Base, directory: str, hub: str, path: str) -> tuple[str, ...]:
    if base.hugging_face is None:
        return (directory, path)
    return (hub, f"{base.hugging_face.repository}@{base.hugging_face.revision}")


def _mounts(base: Base, name: str, path: str, size: str, weights: Mount) -> tuple[Mount, ...]:
    """Where the importer finds the files, unless it fetches them itself; a copy has a size.

    A claim is mounted read-only as a volume: one that may be written gets our group on its files
    where its driver gives groups. The model's own claim is in the pod already, as ``weights``:
    of that the path that is named is seen too.
    """
    if base.image is not None:
        return (Mount(name, {"emptyDir": {"sizeLimit": size}}, path),)
    if base.persistent_volume_claim is not None:
        given = base.persistent_volume_claim
        held = {"claimName": given.claim_name}
        if weights.source == {"persistentVolumeClaim": held}:
            return (replace(weights, path=path, read_only=True, sub_path=given.path),)
        source = {"persistentVolumeClaim": held | {"readOnly": True}}
        return (Mount(name, source, path, read_only=True, sub_path=given.path),)
    return ()


def _copies(base: Base, name: str, mounts: tuple[Mount, ...]) -> tuple[Container, ...]:
    """Image volumes are not everywhere yet, so an image copies its own files."""
    if base.image is None:
        return ()
    copy = Container(
        name=name,
        image=base.image,
        requests=_REQUESTS,
        env={},
        mounts=mounts,
        command=("cp", "-rL", "/models/.", f"{mounts[0].path}/"),
        apart=True,
    )
    return (copy,)
