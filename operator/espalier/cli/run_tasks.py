"""Reads a run and its tasks from the cluster, or from a manifest that is not applied yet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from espalier.api.run.answered_sources import ConfigMapTasks
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRun
from espalier.cli.failure import CliError
from espalier.cli.head_manifest import HeadManifestError, documents_of
from espalier.cli.kubectl import Kubectl
from espalier.runner.jsonl import JsonlTasks
from espalier.runner.open_taskset import open_tasks
from espalier.runner.task_protocol import Tasks

if TYPE_CHECKING:
    from espalier.runner.task_source import TaskSource


@dataclass(frozen=True)
class RunManifest:
    """A run, its namespace, and the ConfigMaps that its manifest brings along, by name."""

    run: TrainingRun
    namespace: str
    config_maps: dict[str, dict[str, str]]

    @property
    def taskset(self) -> Taskset:
        """The run's taskset.

        Raises:
            CliError: it has none.
        """
        if self.run.spec.taskset is None:
            raise CliError(
                f"run {self.run.metadata.name} has no taskset: its script chooses the tasks",
                "usage",
                "Name a run with spec.taskset",
            )
        return self.run.spec.taskset


def declared(cluster: Kubectl, name: str, file: Path | None) -> RunManifest:
    """The run of that name in a manifest, or in the cluster where no manifest is given.

    Raises:
        CliError: the run does not exist, or there are several and none is named.
    """
    if file is None:
        if not name:
            raise CliError("which run?", "usage", "Name one, or give its manifest with --file")
        return RunManifest(cluster.run(name), cluster.namespace(), {})
    documents = _documents(file)
    runs = [body for body in documents if body.get("kind") == "TrainingRun"]
    named = [body for body in runs if name in ("", _name(body))]
    if len(named) != 1:
        names = ", ".join(map(_name, runs)) or "none"
        raise CliError(
            f"{file} has {len(named)} runs {name}".rstrip() + f"; the runs in it: {names}",
            "usage",
            "Name one of them",
        )
    (body,) = named
    run = _run(file, body)
    namespace = str(body["metadata"].get("namespace") or cluster.namespace())
    return RunManifest(run, namespace, dict(map(_config_map, filter(_is_config_map, documents))))


def opened_or_played(declared: RunManifest, cluster: Kubectl, file: Path | None) -> TaskSource:
    """As ``opened``, and of a run that is played over turns its environment."""
    from espalier.runner.task_source import AnsweredTasks, PlayedTasks  # noqa: PLC0415

    if declared.taskset.played is None or file is not None:
        return AnsweredTasks(opened(declared, cluster, file))
    from espalier.environments.open_environment import open_environment  # noqa: PLC0415
    from espalier.environments.python_source import here  # noqa: PLC0415

    if declared.taskset.user_image:
        # The image is not here: its modules are, in the working directory.
        return PlayedTasks(here(declared.taskset))
    return PlayedTasks(open_environment(declared.taskset))


def opened(declared: RunManifest, cluster: Kubectl, file: Path | None) -> Tasks:
    """The run's tasks; ``file`` takes the place of one on a claim or in an image.

    Raises:
        CliError: this command cannot read the place of the tasks.
        UserError: ``TasksetInvalid``, naming source, line and field.
    """
    taskset = declared.taskset
    if file is not None:
        if taskset.file is None:
            raise CliError(
                "--tasks: the run's tasks lie in no file: none can take their place",
                "usage",
                "Leave it out",
            )
        return JsonlTasks(taskset, str(file), file)
    if taskset.file is None:
        return open_tasks(taskset)
    source = of_config_map(taskset, "Give a copy of the file with --tasks")
    known = declared.config_maps.get(source.name, {})
    text = known[source.key] if source.key in known else cluster.config_map(source.name, source.key)
    with as_file(text, source.key) as path:
        return JsonlTasks(taskset, f"configmap/{source.name}/{source.key}", path)


def of_config_map(taskset: Taskset, remedy: str) -> ConfigMapTasks:
    """The ConfigMap that a taskset's file lies in.

    Raises:
        CliError: it lies on a claim or in an image; ``remedy`` says what to do then.
    """
    if taskset.config_map is None:
        where = taskset.file.name if taskset.file is not None else "no file"
        raise CliError(
            f"the run's tasks are in {where}, which this command does not read", "usage", remedy
        )
    return taskset.config_map


@contextmanager
def as_file(text: str, name: str) -> Iterator[Path]:
    """A file of that name and text, while it is read."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_text(text)
        yield path


def _documents(file: Path) -> list[dict[str, Any]]:
    try:
        parsed = list(documents_of(file.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"--file: {file} cannot be read: {error}", "usage") from error
    except HeadManifestError as error:
        raise CliError(f"--file: {file} is {error}", "usage") from error
    return [body for body in parsed if isinstance(body, dict)]


def _run(file: Path, body: dict[str, Any]) -> TrainingRun:
    try:
        return TrainingRun.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CliError(
            f"{file}: {field}: {first['msg']}",
            "usage",
            "Mend it; kubectl explain trainingrun.spec tells every field",
        ) from error


def _is_config_map(body: dict[str, Any]) -> bool:
    return body.get("kind") == "ConfigMap"


def _config_map(body: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The name of a ConfigMap, and its entries that are text."""
    data = body.get("data")
    entries = data.items() if isinstance(data, dict) else ()
    return _name(body), {str(key): text for key, text in entries if isinstance(text, str)}


def _name(body: dict[str, Any]) -> str:
    metadata = body.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
