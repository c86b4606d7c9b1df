"""``espalier checkpoint export``: from a mounted volume, or in a pod that mounts it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.api.trainablemodel import TrainableModel
from espalier.cli.archive import unpack
from espalier.cli.failure import CliError
from espalier.cli.kubectl import Kubectl
from espalier.core.manifests.installation import COPY_SIZE, TMP_SIZE
from espalier.core.manifests.pod import VOLUME_PATH, Container, Mount, Requests, claim, pod_spec
from espalier.core.names import trainer_name
from espalier.core.volume import checkpoints_of, directory_name
from espalier.plain_file import NotPlainError, read_plain

_EXPORT = ("-m", "espalier.trainer.jobs.export")
_INSIDE = "/export"
# GNU's format has sizes beyond 8 GiB without a header of another type.
_TAR = ("--format=gnu", "-cf", "-", ".")
# The pod ends by itself if this command cannot delete it.
_LIMIT_SECONDS = 3600
_START_SECONDS = 300
_REQUESTS = Requests("250m", "1Gi")
# The fields of a pod that differ between installations.
_INSTALLED = ("securityContext", "imagePullSecrets")


@dataclass(frozen=True)
class ExportOptions:
    """What to write, and where."""

    output: Path
    merged: bool
    dtype: str
    force: bool

    def arguments(self) -> list[str]:
        """As espalier.trainer.jobs.export takes them, without the output."""
        return ["--dtype", self.dtype, *(["--merged"] if self.merged else [])]


def export(kubectl: Kubectl, name: str, options: ExportOptions) -> None:
    """Exports from this machine or from the cluster, wherever the objects say that the files are.

    Raises:
        CliError: kubectl or the export failed; it carries their message.
    """
    checkpoint = kubectl.checkpoint(name)
    model = kubectl.model(checkpoint.spec.model_ref.name)
    volume = kubectl.volume(model)
    if volume is None:
        _export_from_cluster(kubectl, model, checkpoint.spec.digest, options)
    else:
        export_from_directory(volume, checkpoint.spec.digest, options, *_base_name(model))


def export_from_directory(
    volume: Path, checkpoint: str, options: ExportOptions, *base_name: str
) -> None:
    """Exports from a volume that is mounted here; the environment must hold torch.

    Raises:
        CliError: the export failed; it carries its message.
    """
    force = ["--force"] if options.force else []
    where = ["--volume", str(volume), "--output", str(options.output)]
    command = [
        sys.executable,
        *_EXPORT,
        checkpoint,
        *where,
        *options.arguments(),
        *base_name,
        *force,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CliError(_last_line(done.stderr))


def _export_from_cluster(
    kubectl: Kubectl, model: TrainableModel, digest: str, options: ExportOptions
) -> None:
    """Exports in a pod of the trainer's image beside the volume and streams the files here."""
    if options.output.exists() and not options.force:
        raise CliError(f"{options.output} exists: name another directory, or give --force")
    trainer = kubectl.pod_spec("statefulsets.apps", trainer_name(model.metadata.name))
    pod = export_pod(model, trainer, f"{model.metadata.name}-export-{uuid.uuid4().hex[:8]}")
    with running(kubectl, pod) as started:
        where = ["--volume", VOLUME_PATH, "--output", f"{_INSIDE}/out"]
        command = ["python", *_EXPORT, digest, *where, *options.arguments()]
        kubectl.call("exec", started, "--", *command, *_base_name(model), seconds=_LIMIT_SECONDS)
        _fetch(kubectl, started, options.output)


def rollouts(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    """The records of the rollouts of a checkpoint's step, read from the model's volume.

    Raises:
        CliError: kubectl failed; it carries its message.
    """
    checkpoint = kubectl.checkpoint(name)
    of = checkpoint.spec.model_ref.name
    model = kubectl.model(of)
    directory = directory_name(checkpoint.spec.digest)
    # Versions before had one folder for the checkpoints of all models.
    folders = (checkpoints_of(Path(), of), checkpoints_of(Path(), ""))
    places = [folder / directory / "rollouts.jsonl" for folder in folders]
    volume = kubectl.volume(model)
    text = _in_cluster(kubectl, model, places) if volume is None else _read_here(volume, places)
    # Not splitlines: a text may contain characters that Python takes for the end of a line.
    return [json.loads(line) for line in text.split("\n") if line]


def _read_here(volume: Path, places: Sequence[Path]) -> str:
    found = [volume / place for place in places]
    path = next((path for path in found if path.is_file()), found[0])
    try:
        # Whoever writes the volume would choose by a link what of this machine is printed.
        return read_plain(path).decode()
    except NotPlainError as error:
        raise CliError(f"cannot read {path}: it is no plain file") from error
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error


def _in_cluster(kubectl: Kubectl, model: TrainableModel, places: Sequence[Path]) -> str:
    trainer = kubectl.pod_spec("statefulsets.apps", trainer_name(model.metadata.name))
    pod = export_pod(model, trainer, f"{model.metadata.name}-read-{uuid.uuid4().hex[:8]}")
    with running(kubectl, pod) as started:
        # Where it is in none, the error names the model's own folder.
        script = 'for place; do [ -e "$place" ] && exec cat "$place"; done; exec cat "$1"'
        found = (f"{VOLUME_PATH}/{place}" for place in places)
        return kubectl.call("exec", started, "--", "sh", "-c", script, "sh", *found)


def export_pod(model: TrainableModel, like: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A pod that waits beside the model's volume, which it cannot write to.

    It has the image, user, groups and pull secrets of ``like``, another of Espalier's pods.
    """
    container = Container(
        name="export",
        image=like["containers"][0]["image"],
        requests=_REQUESTS,
        env={},
        mounts=(
            claim(model, read_only=True),
            Mount("export", {"emptyDir": {"sizeLimit": COPY_SIZE}}, _INSIDE),
        ),
        command=("sleep", str(_LIMIT_SECONDS)),
    )
    # The trainer's place and resources: a merge needs the memory of the base, as training does.
    spec = pod_spec(container, model.spec.trainer.template, grace_seconds=0, tmp_size=TMP_SIZE)
    spec |= {name: like[name] for name in _INSTALLED if name in like}
    spec |= {"restartPolicy": "Never", "activeDeadlineSeconds": _LIMIT_SECONDS}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _base_name(model: TrainableModel) -> tuple[str, ...]:
    base = model.spec.source.base
    if base is None or base.hugging_face is None:
        return ()
    return ("--base-name", base.hugging_face.repository)


@contextmanager
def running(kubectl: Kubectl, pod: dict[str, Any]) -> Iterator[str]:
    """Runs the pod and yields its name; deletes it at the end."""
    name = pod["metadata"]["name"]
    kubectl.call("create", "-f", "-", stdin=json.dumps(pod))
    try:
        wait = ("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={_START_SECONDS}s")
        kubectl.call(*wait, seconds=_START_SECONDS + 30)
        yield name
    finally:
        kubectl.call("delete", "pod", name, "--wait=false")


def _fetch(kubectl: Kubectl, pod: str, output: Path) -> None:
    """Writes the output whole or not at all: unpacks the archive beside it, then renames it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = output.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with kubectl.stream("exec", pod, "--", "tar", "-C", f"{_INSIDE}/out", *_TAR) as raw:
            unpack(raw, staged)
        if output.exists():
            shutil.rmtree(output)
        staged.rename(output)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["the export failed without a word"])[-1]
