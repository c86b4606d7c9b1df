"""What a run's runner reads beside the run, and whether it is there. Pure.

Of ConfigMaps, Services and judges the operator sees itself whether they are there. Secrets it may
not read: of those it tells what the kubelet says, with the field that names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from espalier.api.run.taskset import Taskset
from espalier.api.source import SecretKey
from espalier.api.trainingrun import TrainingRunSpec

SHOWN_KEYS = 8
TASKSET_INVALID, REWARD_INVALID, LOSS_INVALID = "TasksetInvalid", "RewardInvalid", "LossInvalid"
# What a kubelet says of a container whose environment refers to what is not there.
UNCONFIGURED = "CreateContainerConfigError"


@dataclass(frozen=True)
class MapKey:
    """A key of a ConfigMap; ``name_field`` and ``key_field`` of the run name them.

    ``reason`` is that of a run without it.
    """

    name: str
    key: str
    name_field: str
    key_field: str
    reason: str


@dataclass(frozen=True)
class Peer:
    """An object of the run's namespace that its runner asks; ``field`` of the run names it.

    ``reason`` is that of a run without it.
    """

    kind: Literal["Service", "TrainableModel"]
    name: str
    field: str
    reason: str


@dataclass(frozen=True)
class Lack:
    """What is not there, with the remedy."""

    reason: str
    message: str


def map_keys(spec: TrainingRunSpec) -> tuple[MapKey, ...]:
    """The keys of ConfigMaps that the run's runner has mounted; none where a script drives it."""
    if spec.driver != "Runner":
        return ()
    found = [
        MapKey(
            tasks.config_map.name,
            tasks.config_map.key,
            f"{field}.configMap.name",
            f"{field}.configMap.key",
            TASKSET_INVALID,
        )
        for field, tasks in _tasksets(spec)
        if tasks.config_map is not None
    ]
    for reward in spec.rewards or ():
        if reward.python is not None:
            ref, field = reward.python.config_map_ref, f"spec.rewards[{reward.name}].python"
            field = f"{field}.configMapRef"
            name_field, key_field = f"{field}.name", f"{field}.key"
            found.append(MapKey(ref.name, ref.key, name_field, key_field, REWARD_INVALID))
    if spec.loss is not None and (custom := spec.loss.custom_ref) is not None:
        field = "spec.loss.customRef"
        found.append(MapKey(custom.name, custom.key, f"{field}.name", f"{field}.key", LOSS_INVALID))
    return tuple(found)


def peers(spec: TrainingRunSpec) -> tuple[Peer, ...]:
    """Whom the run's runner asks for rewards and for episodes."""
    if spec.driver != "Runner":
        return ()
    found = []
    for field, tasks in _tasksets(spec):
        if tasks.open_env is not None:
            name, where = tasks.open_env.service_ref.name, f"{field}.openEnv.serviceRef.name"
            found.append(Peer("Service", name, where, TASKSET_INVALID))
    for reward in spec.rewards or ():
        field = f"spec.rewards[{reward.name}]"
        if reward.http is not None:
            name, where = reward.http.service_ref.name, f"{field}.http.serviceRef.name"
            found.append(Peer("Service", name, where, REWARD_INVALID))
        if reward.judge is not None:
            name, where = reward.judge.model_ref.name, f"{field}.judge.modelRef.name"
            found.append(Peer("TrainableModel", name, where, REWARD_INVALID))
    return tuple(found)


def judged_by(spec: Mapping[str, Any]) -> set[str]:
    """The models that the rewards of a run ask, of its spec as it is written."""
    rewards = spec.get("rewards") or ()
    return {reward["judge"]["modelRef"]["name"] for reward in rewards if "judge" in reward}


def absent(peer: Peer) -> Lack:
    """That a peer is not there."""
    message = f"{peer.field}: {peer.kind} {peer.name} does not exist: create it"
    return Lack(peer.reason, message)


def _tasksets(spec: TrainingRunSpec) -> list[tuple[str, Taskset]]:
    """The tasks of the run and of its evaluations, by field."""
    named = [("spec.taskset", spec.taskset)]
    named += [(f"spec.evaluation[{one.name}].taskset", one.taskset) for one in spec.evaluation]
    return [(field, tasks) for field, tasks in named if tasks is not None]


def missing(wanted: MapKey, config_map: Mapping[str, Any] | None) -> Lack | None:
    """What is not there of a ConfigMap (None: itself) and its key."""
    if config_map is None:
        message = f"{wanted.name_field}: ConfigMap {wanted.name} does not exist: create it"
        return Lack(wanted.reason, message)
    keys = sorted({**(config_map.get("data") or {}), **(config_map.get("binaryData") or {})})
    if wanted.key in keys:
        return None
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    there = f"it has {', '.join(keys[:SHOWN_KEYS])}{more}" if keys else "it is empty"
    message = f"{wanted.key_field}: ConfigMap {wanted.name} has no key {wanted.key}: {there}"
    return Lack(wanted.reason, message)


def unreadable_secret(spec: TrainingRunSpec, said: str) -> str:
    """The field of a tracker's Secret that a kubelet does not find, with the remedy; or empty.

    Args:
        spec: of the run.
        said: why the kubelet does not start the runner's container.
    """
    tracking = spec.tracking
    refs: list[tuple[str, SecretKey | None]] = []
    if tracking is not None and tracking.wandb is not None:
        refs.append(("wandb.apiKeySecretRef", tracking.wandb.api_key_secret_ref))
    if tracking is not None and tracking.mlflow is not None:
        refs.append(("mlflow.tokenSecretRef", tracking.mlflow.token_secret_ref))
    for field, ref in refs:
        if ref is not None and (f'"{ref.name}"' in said or f"/{ref.name}" in said):
            return (
                f"spec.tracking.{field}: Secret {ref.name} with the key {ref.key} is not there: "
                "create it, and the runner starts"
            )
    return ""
