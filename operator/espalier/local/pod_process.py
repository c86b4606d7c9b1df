"""What one pod is as processes of this machine: commands, environments, directories."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from espalier.core.manifests.labels import IMPORTER_CONTAINER
from espalier.kube.objects import Body
from espalier.local.layout import Layout, MappingError

# The entry points of the images.
DEFAULT = {
    "trainer": ("python", "-m", "espalier.trainer"),
    "rollout": ("python", "-m", "espalier.sampler"),
    "runner": ("python", "-m", "espalier.runner"),
}
# Of the init containers of ours that run Python; the others copy a model's files out of its image.
PREPARES = ("python", "-m")


@dataclass(frozen=True)
class CompanionPlan:
    """What runs beside the pod's process and is started again whenever it ends."""

    command: tuple[str, ...]
    directory: Path
    environment: dict[str, str]


@dataclass(frozen=True)
class InitPlan:
    """A container of ours that runs to its end before the pod's process."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]


@dataclass(frozen=True)
class ProcessPlan:
    """How a pod runs on this machine: directories to copy first, command, environment.

    ``prepares`` run to their end before it, a moment each; so does ``works_first``, which may take
    hours and does a part of the pod's work. ``companions`` run beside it.
    """

    copies: tuple[tuple[Path, Path], ...]
    command: tuple[str, ...]
    environment: dict[str, str]
    message: Path
    prepares: tuple[InitPlan, ...] = ()
    works_first: InitPlan | None = None
    companions: tuple[CompanionPlan, ...] = ()


def plan(
    pod: str,
    role: str,
    spec: Body,
    *,
    uid: str,
    address: str,
    layout: Layout,
    config: dict[str, dict[str, str]],
) -> ProcessPlan:
    """The plan for a pod of a role, with its uid, at a loopback address.

    Raises:
        MappingError: an image, a Secret or a ConfigMap is not on this machine.
    """
    mounts = layout.mounts(pod, spec, config)
    container = spec["containers"][0]
    command = [*container.get("command", DEFAULT.get(role, ())), *container.get("args", ())]
    if role == "trainer":
        command += ["--host", address]
    sources = _Sources({"metadata.uid": uid}, layout, config)
    here = sources.environment(container, mounts)
    message = layout.root / "pods" / pod / "termination-log"
    message.parent.mkdir(parents=True, exist_ok=True)
    own = {
        "ESPALIER_HOST": address,
        "ESPALIER_TERMINATION_LOG": str(message),
        # The runners of one machine would want the same port.
        "ESPALIER_METRICS_PORT": "",
        "TMPDIR": here.get("HOME", "/tmp"),
        # Downloads are shared by every model and kept between starts.
        "HF_HOME": os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface")),
    }
    inits = spec.get("initContainers", ())
    beside = [init for init in inits if init.get("restartPolicy") == "Always"]
    prepares = [init for init in inits if tuple(init["command"][:2]) == PREPARES]
    copied = [init for init in inits if init not in beside and init not in prepares]
    ours = [
        InitPlan(
            name=init["name"],
            command=_python(init, mounts),
            environment={**os.environ, **sources.environment(init, mounts), **own},
        )
        for init in prepares
    ]
    return ProcessPlan(
        copies=tuple(_copy(init, layout, mounts) for init in copied),
        # The interpreter is this machine's; its arguments are the pod's, whose paths are mapped.
        command=(sys.executable, *(_moved(part, mounts) for part in command[1:])),
        environment={**os.environ, **here, **own},
        message=message,
        prepares=tuple(init for init in ours if init.name != IMPORTER_CONTAINER),
        works_first=next((init for init in ours if init.name == IMPORTER_CONTAINER), None),
        companions=tuple(_companion(init, layout, mounts) for init in beside),
    )


@dataclass(frozen=True)
class _Sources:
    """The sources of a variable: a field of the pod, a key of a Secret or of a ConfigMap."""

    fields: dict[str, str]
    layout: Layout
    config: dict[str, dict[str, str]]

    def environment(self, container: Body, mounts: dict[str, Path]) -> dict[str, str]:
        """The variables of a container, whose paths are those of this machine."""
        given = {entry["name"]: self.value(entry) for entry in container.get("env", ())}
        return {name: _moved(value, mounts) for name, value in given.items()}

    def value(self, entry: Body) -> str:
        source = entry.get("valueFrom", {})
        if reference := source.get("configMapKeyRef"):
            return self._configured(reference["name"], reference["key"])
        if reference := source.get("secretKeyRef"):
            return self.layout.secret(reference["name"], reference["key"])
        if reference := source.get("fieldRef"):
            return self.fields[reference["fieldPath"]]
        return str(entry["value"])

    def _configured(self, name: str, key: str) -> str:
        entries = self.config.get(name, {})
        if key not in entries:
            raise MappingError(f"ConfigMap {name} with key {key} is in no manifest: add it")
        return entries[key]


def _python(init: Body, mounts: dict[str, Path]) -> tuple[str, ...]:
    command = [*init["command"], *init.get("args", ())]
    return (sys.executable, *(_moved(part, mounts) for part in command[1:]))


def _companion(init: Body, layout: Layout, mounts: dict[str, Path]) -> CompanionPlan:
    """A user's image beside the runner: its working directory on this machine, and a Python.

    It gets neither the token nor a Secret; walls of a container it has not, it is the user's own.
    """
    place = _image(init, layout, "your modules and, if they need packages, a .venv that has them")
    own = place / ".venv" / "bin" / "python"
    python = str(own) if own.is_file() else sys.executable
    given = {entry["name"]: str(entry["value"]) for entry in init.get("env", ())}
    hidden = {*layout.secrets.values(), layout.token()}
    inherited = {name: value for name, value in os.environ.items() if value not in hidden}
    command = (python, *(_moved(part, mounts) for part in init["command"][1:]))
    return CompanionPlan(command, place, {**inherited, **given})


def _copy(init: Body, layout: Layout, mounts: dict[str, Path]) -> tuple[Path, Path]:
    source = _image(init, layout, "the model's files")
    return source, Path(_moved(init["command"][-1].rstrip("/"), mounts))


def _image(init: Body, layout: Layout, holds: str) -> Path:
    """The directory that stands for a container's image."""
    image = init["image"]
    place = layout.images.get(image)
    if place is None:
        raise MappingError(
            f"image {image} is not on this machine: give --image {image}=DIRECTORY with {holds}"
        )
    if not place.is_dir():
        raise MappingError(f"--image {image}={place}: that is not a directory")
    return place


def _moved(text: str, mounts: dict[str, Path]) -> str:
    """The path on this machine that stands for one inside the pod; any other text unchanged."""
    for path, place in mounts.items():
        if text == path or text.startswith(f"{path}/"):
            return f"{place}{text.removeprefix(path)}"
    return text
