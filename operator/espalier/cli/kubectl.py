"""Reads objects through kubectl, so that the user's own cluster access and plug-ins count."""

from __future__ import annotations

import difflib
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.cli.failure import CliError, Kind
from espalier.core.manifests.labels import MODEL

TIMEOUT_SECONDS = 60
# The kind of a failure, by the words with which kubectl prints the API server's reason.
_KINDS: tuple[tuple[str, Kind], ...] = (
    ("(NotFound)", "not_found"),
    ("(Forbidden)", "permission_denied"),
    ("(Conflict)", "conflict"),
    ("(AlreadyExists)", "conflict"),
    ("(InternalError)", "server_error"),
)
_Object = TypeVar("_Object", bound=BaseModel)


class Kubectl:
    """kubectl in a namespace; without one in that of the current context."""

    def __init__(self, namespace: str | None) -> None:
        self._given = namespace

    def namespace(self) -> str:
        """The namespace that objects are read from."""
        if self._given:
            return self._given
        path = "jsonpath={..namespace}"
        return _kubectl("config", "view", "--minify", "-o", path).strip() or "default"

    def volume(self, model: TrainableModel) -> Path | None:
        """The directory of a model's claim on this machine; None if it is in the cluster."""
        del model
        return None

    def require_running(self) -> None:
        """Before a wait for a change: refuses if nothing can change any more."""

    def model(self, name: str) -> TrainableModel:
        """A TrainableModel."""
        return _parse(TrainableModel, self._named("trainablemodels.espalier.dev", name))

    def run(self, name: str) -> TrainingRun:
        """A TrainingRun."""
        return _parse(TrainingRun, self._named("trainingruns.espalier.dev", name))

    def checkpoint(self, name: str) -> Checkpoint:
        """A Checkpoint."""
        return _parse(Checkpoint, self._named("checkpoints.espalier.dev", name))

    def checkpoints(self, model: str) -> list[Checkpoint]:
        """The Checkpoints of a model, by step."""
        bodies = self._list("checkpoints.espalier.dev", {MODEL: model})
        items = [_parse(Checkpoint, item) for item in bodies]
        return sorted(items, key=lambda checkpoint: checkpoint.spec.step)

    def config_map(self, name: str, key: str) -> str:
        """The text under a key of a ConfigMap."""
        data: dict[str, str] = self._named("configmaps", name).get("data") or {}
        if key not in data:
            raise CliError(f"ConfigMap {name} has no key {key}; there are: {', '.join(data)}")
        return data[key]

    def pod_spec(self, kind: str, name: str) -> dict[str, Any]:
        """What a workload's pods are made from."""
        spec: dict[str, Any] = self._one(kind, name)["spec"]["template"]["spec"]
        return spec

    def models(self) -> list[TrainableModel]:
        """All models."""
        items = self._list("trainablemodels.espalier.dev")
        return [_parse(TrainableModel, item) for item in items]

    def head(self, name: str) -> CheckpointHead:
        """A CheckpointHead."""
        return _parse(CheckpointHead, self._named("checkpointheads.espalier.dev", name))

    def heads(self) -> list[CheckpointHead]:
        """All heads."""
        items = self._list("checkpointheads.espalier.dev")
        return [_parse(CheckpointHead, item) for item in items]

    def raw(self, kind: str, name: str) -> dict[str, Any]:
        """An object as the API server stores it, managedFields included."""
        return self._named(kind, name, managed=True)

    def raw_heads(self, model: str) -> list[dict[str, Any]]:
        """The heads of a model, managedFields included; the one of the model's name first."""
        items = self._list("checkpointheads.espalier.dev", managed=True)
        heads = [item for item in items if item["spec"]["modelRef"]["name"] == model]
        return sorted(
            heads, key=lambda head: (head["metadata"]["name"] != model, head["metadata"]["name"])
        )

    def exists(self, kind: str, name: str) -> bool:
        """Whether an object exists."""
        return bool(_kubectl("get", kind, name, *self._scope(), "--ignore-not-found", "-o", "name"))

    def create(self, manifest: dict[str, Any], *, dry_run: bool = False) -> None:
        """Creates an object; a dry run lets the API server check it."""
        check = ("--dry-run=server",) if dry_run else ()
        self.call("create", "-f", "-", *check, stdin=json.dumps(manifest))

    def patch(self, kind: str, name: str, change: dict[str, Any], *, dry_run: bool = False) -> None:
        """Changes fields of an object, as kubectl's user."""
        check = ("--dry-run=server",) if dry_run else ()
        self.call("patch", kind, name, "--type=merge", "--patch", json.dumps(change), *check)

    def call(self, *arguments: str, stdin: str = "", seconds: float = TIMEOUT_SECONDS) -> str:
        """The output of kubectl in the namespace; CliError with its message if it fails."""
        return _kubectl(*self._scope(), *arguments, stdin=stdin, seconds=seconds)

    @contextmanager
    def stream(self, *arguments: str) -> Iterator[IO[bytes]]:
        """The output of kubectl as it arrives; CliError if kubectl fails in the end."""
        command = ["kubectl", *self._scope(), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                yield process.stdout
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise CliError(f"kubectl {arguments[0]} failed with {process.returncode}")

    def _scope(self) -> tuple[str, ...]:
        return ("--namespace", self._given) if self._given else ()

    def _named(self, kind: str, name: str, *, managed: bool = False) -> dict[str, Any]:
        try:
            return self._one(kind, name, managed=managed)
        except CliError as error:
            if error.kind == "not_found":
                error.suggestion = self._nearest(kind, name)
            raise

    def _nearest(self, kind: str, name: str) -> str:
        known = self._names(kind)
        near = difflib.get_close_matches(name, known, n=3)
        if near:
            return f"Did you mean {' or '.join(near)}?"
        return f"There are: {', '.join(known[:8])}" if known else "There are none in this namespace"

    def _names(self, kind: str) -> list[str]:
        listed = _kubectl("get", kind, *self._scope(), "-o", "name").split()
        return [line.partition("/")[2] for line in listed]

    def _one(self, kind: str, name: str, *, managed: bool = False) -> dict[str, Any]:
        return self._get(kind, name, managed=managed)

    def _list(
        self, kind: str, labels: Mapping[str, str] | None = None, *, managed: bool = False
    ) -> list[dict[str, Any]]:
        chosen = ",".join(f"{label}={value}" for label, value in (labels or {}).items())
        select = ("--selector", chosen) if chosen else ()
        items: list[dict[str, Any]] = self._get(kind, *select, managed=managed)["items"]
        return items

    def _get(self, kind: str, *arguments: str, managed: bool) -> dict[str, Any]:
        who = ("--show-managed-fields",) if managed else ()
        answer = _kubectl("get", kind, *arguments, *self._scope(), *who, "-o", "json")
        content: dict[str, Any] = json.loads(answer)
        return content


def _kubectl(*arguments: str, stdin: str = "", seconds: float = TIMEOUT_SECONDS) -> str:
    try:
        done = subprocess.run(
            ["kubectl", *arguments],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise CliError("kubectl is not on the PATH: install it") from error
    except subprocess.TimeoutExpired as error:
        raise CliError(f"kubectl did not answer within {seconds:.0f} s") from error
    if done.returncode != 0:
        output = done.stderr.strip() or f"kubectl {' '.join(arguments)} failed"
        raise CliError(output, next((kind for mark, kind in _KINDS if mark in output), "failure"))
    return done.stdout


def _parse(kind: type[_Object], content: dict[str, Any]) -> _Object:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise CliError(
            f"the cluster's {kind.__name__} is of another version of Espalier than this command: "
            f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
        ) from error
