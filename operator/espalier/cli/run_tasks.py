"""Reads a run and its tasks: of the cluster, or of a manifest that is not applied yet."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from espalier.api.taskset import ConfigMapTasks, Taskset
from espalier.api.trainingrun import TrainingRun
from espalier.cli.failure import CommandError
from espalier.cli.kubectl import Kubectl
from espalier.runner.jsonl import JsonlTasks
from espalier.runner.open_taskset import open_tasks
from espalier.runner.task_protocol import Tasks


@dataclass(frozen=True)
class Declared:
    """A run, its namespace, and the ConfigMaps that its manifest brings along, by name."""

    run: TrainingRun
    namespace: str
    config_maps: dict[str, dict[str, str]]

    @property
    def taskset(self) -> Taskset:
        """The run's taskset.

        Raises:
            CommandError: it has none.
        """
        if self.run.spec.taskset is None:
            raise CommandError(
                f"run {self.run.metadata.name} has no taskset: its script chooses the tasks",
                "usage",
                "Name a run with spec.taskset",
            )
        return self.run.spec.taskset


def declared(cluster: Kubectl, name: str, file: Path | None) -> Declared:
    """The run of that name in a manifest, or in the cluster where no manifest is given.

    Raises:
        CommandError: there is no such run, or several of which none is named.
    """
    if file is None:
        if not name:
            raise CommandError("which run?", "usage", "Name one, or give its manifest with --file")
        return Declared(cluster.run(name), cluster.namespace(), {})
    documents = _documents(file)
    runs = [body for body in documents if body.get("kind") == "TrainingRun"]
    named = [body for body in runs if name in ("", _name(body))]
    if len(named) != 1:
        names = ", ".join(map(_name, runs)) or "none"
        raise CommandError(
            f"{file} has {len(named)} runs {name}".rstrip() + f"; the runs in it: {names}",
            "usage",
            "Name one of them",
        )
    maps = {_name(body): body.get("data") or {} for body in documents if _is_config_map(body)}
    (body,) = named
    namespace = str(body["metadata"].get("namespace") or cluster.namespace())
    return Declared(_run(file, body), namespace, maps)


def opened(declared: Declared, cluster: Kubectl, file: Path | None) -> Tasks:
    """The run's tasks; ``file`` takes the place of one on a claim or in an image.

    Raises:
        CommandError: they lie where this command does not read.
        UserError: ``TasksetInvalid``, naming source, line and field.
    """
    taskset = declared.taskset
    if file is not None:
        if taskset.file is None:
            raise CommandError(
                "--tasks: the run's tasks are generated, and no file of it", "usage", "Leave it out"
            )
        return JsonlTasks(taskset, str(file), file)
    if taskset.file is None:
        return open_tasks(taskset)
    if taskset.config_map is None:
        raise CommandError(
            f"the run's tasks are in {taskset.file.name}, which this command does not read",
            "usage",
            "Give a copy of the file with --tasks",
        )
    return _of_config_map(declared, taskset, taskset.config_map, cluster)


def _of_config_map(
    declared: Declared, taskset: Taskset, source: ConfigMapTasks, cluster: Kubectl
) -> JsonlTasks:
    known = declared.config_maps.get(source.name, {})
    text = known[source.key] if source.key in known else cluster.config_map(source.name, source.key)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / source.key
        path.write_text(text)
        return JsonlTasks(taskset, f"configmap/{source.name}/{source.key}", path)


def _documents(file: Path) -> list[dict[str, Any]]:
    try:
        parsed = list(yaml.safe_load_all(file.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--file: {file} cannot be read: {error}", "usage") from error
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise CommandError(f"--file: {file} is not YAML: {first}", "usage") from error
    return [body for body in parsed if isinstance(body, dict)]


def _run(file: Path, body: dict[str, Any]) -> TrainingRun:
    try:
        return TrainingRun.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CommandError(
            f"{file}: {field}: {first['msg']}",
            "usage",
            "Mend it; kubectl explain trainingrun.spec tells every field",
        ) from error


def _is_config_map(body: dict[str, Any]) -> bool:
    return body.get("kind") == "ConfigMap"


def _name(body: dict[str, Any]) -> str:
    metadata = body.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
