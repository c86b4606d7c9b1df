"""What all pods have in common: the restricted security profile, environment, volumes, placement.

Profile: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from espalier.api.podtemplate import PodTemplate, Resources
from espalier.api.source import SecretKey
from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.installation import (
    KEYS_CONFIG_MAP,
    KEYS_DIRECTORY,
    KEYS_FILE,
    ChildSettings,
)
from espalier.core.manifests.intent import Manifest
from espalier.core.names import POD_UID

USER = 65532
PORT = 8000
PORT_NAME = "http"
METRICS_PORT, METRICS_PORT_NAME = 8080, "metrics"
VOLUME_PATH = "/weights"

_SHARED_MEMORY = "1Gi"
_IDS = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
# Parts of a template that are not fields of the pod's spec.
_NOT_PLACEMENT = ("resources", "env", "labels", "annotations", "queueName")


@dataclass(frozen=True)
class Requests:
    """CPU and memory to request when the user's template names no resources."""

    cpu: str
    memory: str


@dataclass(frozen=True)
class Mount:
    """A pod volume and where the container sees it."""

    name: str
    source: Manifest
    path: str
    read_only: bool = False
    sub_path: str = ""

    def volume(self) -> Manifest:
        """The entry of the pod's volumes."""
        return {"name": self.name, **self.source}

    def mount(self) -> Manifest:
        """The entry of the container's volumeMounts."""
        entry: Manifest = {"name": self.name, "mountPath": self.path}
        if self.read_only:
            entry["readOnly"] = True
        if self.sub_path:
            entry["subPath"] = self.sub_path
        return entry


@dataclass(frozen=True)
class PodField:
    """What the kubelet tells a container of its own pod: a path such as ``metadata.uid``."""

    path: str


# What a variable of the environment is set to: a text, a key of a Secret, a field of the pod.
Variable = str | SecretKey | PodField


@dataclass(frozen=True)
class Container:
    """A container of a pod.

    ``serves`` at PORT, ``tells_metrics`` at METRICS_PORT.
    ``apart``: neither /tmp nor shared memory are those of the pod's other containers. ``stays``: as
    an init container it runs as long as the pod does, and is started again when it ends.
    ``resources`` go before ``requests`` where no template names any. ``templated``: as an init
    container it has the variables and resources of the template, as the main one does.
    """

    name: str
    image: str
    requests: Requests
    env: dict[str, Variable]
    mounts: tuple[Mount, ...] = ()
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    serves: bool = False
    tells_metrics: bool = False
    probes: Manifest = field(default_factory=dict)
    resources: Resources | None = None
    apart: bool = False
    stays: bool = False
    templated: bool = False


def claim(model: TrainableModel, *, read_only: bool = False) -> Mount:
    """The model's volume of bases and checkpoints."""
    name = model.spec.storage.persistent_volume_claim.claim_name
    return weights(name, read_only=read_only)


def weights(name: str, *, read_only: bool = False) -> Mount:
    """A claim of bases and checkpoints, as a whole."""
    source = {"persistentVolumeClaim": {"claimName": name}}
    return Mount("weights", source, VOLUME_PATH, read_only=read_only)


def part(whole: Mount, folder: Path, *, read_only: bool = False) -> Mount:
    """A folder of a claim, where it lies in it; ``folders_container`` has made it."""
    path = f"{whole.path}/{folder}"
    return replace(whole, path=path, sub_path=str(folder), read_only=read_only)


def public_keys(settings: ChildSettings) -> tuple[Mount, ...]:
    """Where the keys lie that tokens are verified with; the kubelet replaces a changed file."""
    if settings.public_keys != KEYS_FILE:
        return ()
    # A subPath would stay as it was when the pod started.
    source = {"configMap": {"name": KEYS_CONFIG_MAP}}
    return (Mount("keys", source, KEYS_DIRECTORY, read_only=True),)


def model_env(
    model: TrainableModel, settings: ChildSettings, *, base: str, dtype: str
) -> dict[str, Variable]:
    """The environment of every pod that loads a base, given by its digest."""
    return {
        "ESPALIER_MODEL": model.metadata.name,
        "ESPALIER_NAMESPACE": model.metadata.namespace,
        "ESPALIER_VOLUME": VOLUME_PATH,
        "ESPALIER_BASE": base,
        # It takes the tokens that name it, and no other.
        POD_UID: PodField("metadata.uid"),
        "ESPALIER_PUBLIC_KEYS": settings.public_keys,
        "ESPALIER_DTYPE": dtype,
        **settings.telemetry,
    }


def startup_probe(seconds: int, period: int) -> Manifest:
    """A startup probe, asked every ``period`` seconds until ``seconds`` have passed."""
    return http_probe("/healthz", period=period, failures=-(-seconds // period))


def http_probe(path: str, *, period: int, failures: int, timeout: int = 5) -> Manifest:
    """A probe of the container's port; ``period`` and ``timeout`` in seconds."""
    return {
        "httpGet": {"path": path, "port": PORT_NAME},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }


def pod_spec(
    container: Container,
    template: PodTemplate | None,
    *,
    grace_seconds: int,
    init_containers: tuple[Container, ...] = (),
    service_account: str = "",
    pull_secrets: tuple[str, ...] = (),
    assigned_ids: bool = False,
    tmp_size: str,
) -> Manifest:
    """A pod of one container, placed as the user's template says.

    It pulls with ``pull_secrets`` and with those of the template; with ``assigned_ids`` it leaves
    user and groups to the platform. A pod whose /tmp grows beyond ``tmp_size`` is evicted.
    """
    mounts = {m.name: m for c in (container, *init_containers) for m in _mounts(c, tmp_size)}
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            **({} if assigned_ids else _IDS),
            # Else the kubelet walks the whole volume at every start of a pod.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(container, template)],
        "volumes": [mount.volume() for mount in mounts.values()],
    }
    if init_containers:
        spec["initContainers"] = [
            _container(c, template if c.templated else None) for c in init_containers
        ]
    if service_account:
        spec["serviceAccountName"] = service_account
    placement = template.wire() if template else {}
    secrets = {name: {"name": name} for name in pull_secrets}
    secrets |= {given["name"]: given for given in placement.pop("imagePullSecrets", ())}
    if secrets:
        spec["imagePullSecrets"] = [*secrets.values()]
    return spec | {name: value for name, value in placement.items() if name not in _NOT_PLACEMENT}


def pod_metadata(labels: dict[str, str], template: PodTemplate | None) -> Manifest:
    """Labels and annotations of a pod; those that it is found by are never the user's."""
    given = template.labels if template and template.labels else {}
    metadata: Manifest = {"labels": {**given, **labels}}
    if template and template.annotations:
        metadata["annotations"] = dict(template.annotations)
    return metadata


def _mounts(container: Container, tmp_size: str) -> tuple[Mount, ...]:
    memory = {"emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}}
    own = f"{container.name}-" if container.apart else ""
    return (
        *container.mounts,
        Mount(f"{own}tmp", {"emptyDir": {"sizeLimit": tmp_size}}, "/tmp"),
        Mount(f"{own}shared-memory", memory, "/dev/shm"),
    )


def _container(container: Container, template: PodTemplate | None) -> Manifest:
    # The root file system is read-only, and libraries write caches below the home directory.
    # An assigned user is in no list of users, and libraries ask for its name.
    env = {"HOME": "/tmp", "USER": "espalier", **container.env}
    requests = {"cpu": container.requests.cpu, "memory": container.requests.memory}
    given = template.resources if template else container.resources
    variables = {name: _variable(name, value) for name, value in env.items()}
    if template:
        variables |= {given.name: given.wire() for given in template.env or ()}
    body: Manifest = {
        "name": container.name,
        "image": container.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [*variables.values()],
        "resources": given.wire() if given else {"requests": requests},
        "volumeMounts": [mount.mount() for mount in _mounts(container, "")],
        # The last lines of the log tell of a crash that left no message of its own.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **container.probes,
    }
    if container.command:
        body["command"] = [*container.command]
    if container.args:
        body["args"] = [*container.args]
    if container.stays:
        body["restartPolicy"] = "Always"
    if container.serves:
        body["ports"] = [{"name": PORT_NAME, "containerPort": PORT}]
    if container.tells_metrics:
        body["ports"] = [{"name": METRICS_PORT_NAME, "containerPort": METRICS_PORT}]
    return body


def _variable(name: str, value: Variable) -> Manifest:
    if isinstance(value, str):
        return {"name": name, "value": value}
    if isinstance(value, PodField):
        reference = {"apiVersion": "v1", "fieldPath": value.path}
        return {"name": name, "valueFrom": {"fieldRef": reference}}
    return {"name": name, "valueFrom": {"secretKeyRef": value.wire()}}
