"""The runner: a Job that drives one run through the gateway, as a user would."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from espalier.api.run.runner import RunnerSpec
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.core.manifests.environment import (
    host_containers,
    host_name,
    runner_variables,
    socket_mount,
    user_images,
)
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.intent import Manifest, child
from espalier.core.manifests.job import job_spec
from espalier.core.manifests.labels import child_labels
from espalier.core.manifests.pod import (
    METRICS_PORT,
    Container,
    Mount,
    Requests,
    Variable,
    pod_metadata,
    pod_spec,
)
from espalier.core.manifests.queue import queue_labels
from espalier.core.names import GATEWAY_AUDIENCE, runner_name

TASKS_PATH = "/etc/espalier/tasks"
MODULES_PATH = "/etc/espalier/modules"
# Of the trackers: where the claims of TensorBoard and trackio are, and the variables that hold the
# keys of others.
BOARDS_PATH, TRACKIO_PATH = "/boards", "/trackio"
WANDB_KEY, MLFLOW_TOKEN = "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"

# The runner and its scoring worker, each with reasoning-gym loaded, and children that score.
_REQUESTS = Requests("50m", "512Mi")
_RETRIES = 20
_TOKEN_DIRECTORY = "/var/run/secrets/espalier"
_TOKEN_SECONDS = 3600


def runner_job(run: TrainingRun, model: TrainableModel, settings: ChildSettings) -> Manifest:
    """The Job that drives the run; its pod template cannot change, only the Job be replaced."""
    name = run.metadata.name
    labels = child_labels("runner", model.metadata.name, name)
    taskset = run.spec.taskset
    images = user_images(run.spec)
    container = Container(
        name="runner",
        image=settings.images.runner,
        requests=_REQUESTS,
        env={
            "ESPALIER_RUN": f"{run.metadata.namespace}/{name}",
            "ESPALIER_MODEL": model.metadata.name,
            "ESPALIER_NAMESPACE": run.metadata.namespace,
            "ESPALIER_GATEWAY_URL": settings.gateway_url,
            "ESPALIER_TOKEN_FILE": f"{_TOKEN_DIRECTORY}/token",
            "ESPALIER_TASKS_DIRECTORY": TASKS_PATH,
            "ESPALIER_BOARDS": BOARDS_PATH,
            "ESPALIER_TRACKIO": TRACKIO_PATH,
            "ESPALIER_TASKS_MOUNTED": taskset.mounted if taskset else "",
            "ESPALIER_MODULES_DIRECTORY": MODULES_PATH,
            "ESPALIER_MODULES_MOUNTED": ",".join(run.spec.modules),
            # Generated tasks must be the same after a restart.
            "PYTHONHASHSEED": "0",
            "ESPALIER_METRICS_PORT": str(METRICS_PORT),
            **(runner_variables() if images else {}),
            **_keys(run),
            **settings.telemetry,
        },
        mounts=(
            _token(),
            *_tasks(run, settings.copy_size),
            *_modules(run),
            *_boards(run),
            *map(socket_mount, images),
        ),
        tells_metrics=True,
    )
    runner = run.spec.runner or RunnerSpec()
    template = runner.template
    pod = pod_spec(
        container,
        template,
        grace_seconds=30,
        init_containers=(
            *_copies(run, settings.copy_size),
            *host_containers(images, settings.images.runner),
        ),
        service_account=settings.runner_service_account,
        pull_secrets=settings.pull_secrets,
        assigned_ids=settings.assigned_ids,
        tmp_size=settings.tmp_size,
    )
    spec = job_spec(
        pod,
        pod_metadata(labels, template),
        template,
        containers=("runner",),
        retries=_RETRIES if runner.backoff_limit is None else runner.backoff_limit,
        seconds=None,
    )
    return child(
        "batch/v1",
        "Job",
        runner_name(name),
        labels=labels | queue_labels(template),
        owner_kind="TrainingRun",
        owner=run.metadata,
        spec=spec,
    )


def pod_fingerprint(run: TrainingRun) -> str:
    """What of a run its runner's pod is made of: when that is edited, the Job must be replaced.

    Everything else of the run the runner reads again at every step.
    """
    taskset, runner = run.spec.taskset, run.spec.runner
    tasks = taskset.config_map.name if taskset and taskset.config_map else ""
    made_of: dict[str, Any] = {"configMap": tasks, "runner": runner.wire() if runner else {}}
    if found := run.spec.modules:
        made_of["modules"] = found
    if run.spec.tracking is not None:
        made_of["tracking"] = run.spec.tracking.wire()
    for name, source in user_images(run.spec).items():
        resources = source.resources.wire() if source.resources else {}
        made_of[host_name(name)] = [source.image, resources]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _token() -> Mount:
    token = {
        "audience": GATEWAY_AUDIENCE,
        "expirationSeconds": _TOKEN_SECONDS,
        "path": "token",
    }
    source = {"projected": {"sources": [{"serviceAccountToken": token}]}}
    return Mount("token", source, _TOKEN_DIRECTORY, read_only=True)


def _keys(run: TrainingRun) -> dict[str, Variable]:
    """The keys of trackers, by reference: neither the operator nor the spec holds one."""
    tracking = run.spec.tracking
    found = {
        WANDB_KEY: tracking.wandb.api_key_secret_ref if tracking and tracking.wandb else None,
        MLFLOW_TOKEN: tracking.mlflow.token_secret_ref if tracking and tracking.mlflow else None,
    }
    return {name: key for name, key in found.items() if key is not None}


def _boards(run: TrainingRun) -> tuple[Mount, ...]:
    """The claims that the files of TensorBoard and trackio go to."""
    tracking = run.spec.tracking
    named = [
        ("boards", BOARDS_PATH, tracking.tensor_board if tracking else None),
        ("trackio", TRACKIO_PATH, tracking.trackio if tracking else None),
    ]
    return tuple(
        Mount(name, {"persistentVolumeClaim": {"claimName": files.claim_name}}, path)
        for name, path, files in named
        if files is not None
    )


def _tasks(run: TrainingRun, size: str) -> tuple[Mount, ...]:
    """Where the runner finds the file of its tasks, if they are in one; a copy has a size."""
    tasks = run.spec.taskset
    if tasks is None:
        return ()
    if tasks.config_map is not None:
        source: Manifest = {"configMap": {"name": tasks.config_map.name}}
        return (Mount("tasks", source, TASKS_PATH, read_only=True),)
    if (claim := tasks.persistent_volume_claim) is not None:
        source = {"persistentVolumeClaim": {"claimName": claim.claim_name}}
        # Of the claim the file's own directory, and no more.
        return (Mount("tasks", source, TASKS_PATH, read_only=True, sub_path=claim.directory),)
    copy = {"emptyDir": {"sizeLimit": size}}
    return (Mount("tasks", copy, TASKS_PATH),) if tasks.image is not None else ()


def _modules(run: TrainingRun) -> tuple[Mount, ...]:
    """Where the runner finds the user's modules, without their maps' other keys."""
    found = run.spec.modules
    if not found:
        return ()
    sources = [
        {"configMap": {"name": name, "items": [{"key": key, "path": f"{name}/{key}"}]}}
        for name, _, key in (one.partition("/") for one in found)
    ]
    return (Mount("modules", {"projected": {"sources": sources}}, MODULES_PATH, read_only=True),)


def _copies(run: TrainingRun, size: str) -> tuple[Container, ...]:
    """Image volumes are not everywhere yet, so an image copies its own files."""
    if run.spec.taskset is None or run.spec.taskset.image is None:
        return ()
    copy = Container(
        name="copy-tasks",
        image=run.spec.taskset.image.reference,
        requests=_REQUESTS,
        env={},
        mounts=_tasks(run, size),
        command=("cp", "-rL", "/tasks/.", f"{TASKS_PATH}/"),
    )
    return (copy,)
