"""``espalier adopt``: recreates the Checkpoints of the files on a model's volume."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.api.trainablemodel import TrainableModel
from espalier.api.wire.commits import Commit
from espalier.cli.checkpoint_export import export_pod, running
from espalier.cli.failure import CliError
from espalier.cli.kubectl import Kubectl
from espalier.core.checkpoints.adoption import Adoption, plan
from espalier.core.checkpoints.commits import checkpoint_body, run_name, run_uid
from espalier.core.lineage.lineage import Point
from espalier.core.manifests.pod import VOLUME_PATH
from espalier.core.names import importer_name, trainer_name
from espalier.core.run.continued import CONTINUES

_SURVEY = ("-m", "espalier.trainer.jobs.adoption")
_LIMIT_SECONDS = 3600
_AT_ONCE = 200


@dataclass(frozen=True)
class Found:
    """The plan for a model's checkpoints, and why other paths are not checkpoints."""

    adoption: Adoption
    strays: tuple[tuple[str, str], ...]


def adopt(kubectl: Kubectl, name: str, *, volume: Path | None, image: str, dry_run: bool) -> Found:
    """Creates the Checkpoints that are missing; existing ones stay as they are.

    Raises:
        CliError: the model does not exist, the volume cannot be read, or kubectl refused.
    """
    model = kubectl.model(name)
    base = model.status.resolved.digest if model.status.resolved is not None else ""
    arguments = ["--model", name, *(["--base", base] if base else [])]
    here = volume or kubectl.volume(model)
    if here is not None:
        text = _here(here, arguments)
    else:
        like = {"containers": [{"image": image}]} if image else _pod_spec(kubectl, name)
        text = _beside(kubectl, model, like, arguments)
    commits, strays = _read(text.splitlines())
    existing = {c.metadata.name: c.spec.digest for c in kubectl.checkpoints(name)}
    adoption = plan(commits, existing)
    for bodies in _batches(_bodies(adoption.adopted, kubectl.namespace())):
        kubectl.create({"apiVersion": "v1", "kind": "List", "items": bodies}, dry_run=dry_run)
    return Found(adoption, tuple(strays))


def described(survey: Found, *, dry_run: bool) -> list[str]:
    """The outcome, line by line."""
    adoption = survey.adoption
    verb = "would adopt" if dry_run else "adopted"
    lines = [f"{verb} {commit.name}  {commit.digest}" for commit in adoption.adopted]
    lines += [f"left out {name}: {why}" for name, why in adoption.refused]
    lines += [f"left out {path}: {why}" for path, why in survey.strays]
    lines += [_hint(run, uid, steps) for (run, uid), steps in sorted(_runs(adoption).items())]
    counts = f"{len(adoption.adopted)} {verb}, {len(adoption.present)} were there"
    return [*lines, f"{counts}, {len(adoption.refused) + len(survey.strays)} left out"]


def _runs(adoption: Adoption) -> dict[tuple[str, str], int]:
    """By name and uid of a run, the steps that it took."""
    steps: dict[tuple[str, str], int] = {}
    for commit in adoption.adopted:
        run = run_name(commit), run_uid(commit)
        steps[run] = max(steps.get(run, 0), commit.run_step)
    return steps


def _hint(run: str, uid: str, steps: int) -> str:
    return (
        f"run {run} took {steps} of these steps: to go on counting from there, create it with the "
        f"annotation {CONTINUES}: {uid}"
    )


def content(survey: Found) -> dict[str, Any]:
    """The outcome as JSON."""
    adoption = survey.adoption
    refused = [*adoption.refused, *survey.strays]
    return {
        "adopted": [commit.name for commit in adoption.adopted],
        "present": [commit.name for commit in adoption.present],
        "refused": [{"name": name, "reason": why} for name, why in refused],
    }


def _here(volume: Path, arguments: Sequence[str]) -> str:
    """Surveys a volume that is mounted here; the environment must hold torch."""
    command = [sys.executable, *_SURVEY, *arguments, "--volume", str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CliError((done.stderr.strip().splitlines() or ["the survey failed"])[-1])
    return done.stdout


def _beside(
    kubectl: Kubectl, model: TrainableModel, like: Mapping[str, Any], arguments: Sequence[str]
) -> str:
    """Surveys in a pod of the trainer's image beside the volume, which it cannot write to."""
    pod = export_pod(model, like, f"{model.metadata.name}-adopt-{uuid.uuid4().hex[:8]}")
    with running(kubectl, pod) as started:
        command = ["python", *_SURVEY, *arguments, "--volume", VOLUME_PATH]
        return kubectl.call("exec", started, "--", *command, seconds=_LIMIT_SECONDS)


def _pod_spec(kubectl: Kubectl, model: str) -> dict[str, Any]:
    """The pod of the trainer's workload, or of the importer's, which has the same image."""
    for kind, name in (
        ("statefulsets.apps", trainer_name(model)),
        ("jobs.batch", importer_name(model)),
    ):
        if kubectl.exists(kind, name):
            return kubectl.pod_spec(kind, name)
    raise CliError(
        f"{model} has neither a trainer nor an importer to tell the trainer's image",
        "usage",
        "Give --image, or --volume if the volume is mounted here",
    )


def _read(lines: Iterable[str]) -> tuple[list[Commit], list[tuple[str, str]]]:
    commits: list[Commit] = []
    strays: list[tuple[str, str]] = []
    for line in lines:
        entry: dict[str, Any] = json.loads(line)
        if "commit" in entry:
            commits.append(Commit.model_validate(entry["commit"]))
        else:
            strays.append((entry["path"], entry["refused"]))
    return commits, strays


def _bodies(commits: Sequence[Commit], namespace: str) -> list[Mapping[str, Any]]:
    """The Checkpoints as the operator would make them."""
    return [
        checkpoint_body(c, namespace, Point(c.parent_name, c.step - 1, c.parent)) for c in commits
    ]


def _batches(bodies: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[Mapping[str, Any]]]:
    return (bodies[at : at + _AT_ONCE] for at in range(0, len(bodies), _AT_ONCE))
