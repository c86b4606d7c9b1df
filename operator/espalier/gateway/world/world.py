"""The world as routing sees it: parsed objects by namespace and name, updated in place on a change.

Parsing happens when an object changes, never when a request comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.pod_addresses import PodAddress

TRAINER = "trainer"


@dataclass(frozen=True, order=True)
class NamespacedName:
    """Namespace and name of an object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def beside(self, name: str) -> NamespacedName:
        """Another object of the same namespace."""
        return NamespacedName(self.namespace, name)


class Models(dict[NamespacedName, TrainableModel]):
    """Models by name. One that a request has found may be deleted while it waits for an answer."""

    def __missing__(self, name: NamespacedName) -> NoReturn:
        """404 for a model that is gone; lists look before they take one."""
        raise RefusalError(404, "ModelNotFound", f"model {name} was deleted just now")


class Checkpoints(dict[NamespacedName, Checkpoint]):
    """Checkpoints by name, which may be deleted as models may."""

    def __missing__(self, name: NamespacedName) -> NoReturn:
        """404 for a checkpoint that is gone."""
        raise RefusalError(404, "CheckpointNotFound", f"checkpoint {name} was deleted just now")


class Runs(dict[NamespacedName, TrainingRun]):
    """Runs by name."""

    def __missing__(self, name: NamespacedName) -> NoReturn:
        """404 for a run that is not there."""
        raise RefusalError(
            404,
            "RunNotFound",
            f"no TrainingRun {name} in the served namespaces",
            "kubectl get trun -A lists the runs",
        )


@dataclass
class ServedWorld:
    """Every object that routing reads. ``pods`` are by model, then by pod name.

    Attributes:
        namespaces: served namespaces, in the order of preference.
        uids: models by their uid.
        revisions: of each model, how often it or an object that names it changed.
        revision: how often any of them did.
    """

    namespaces: tuple[str, ...]
    models: Models = field(default_factory=Models)
    heads: dict[NamespacedName, CheckpointHead] = field(default_factory=dict)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    runs: Runs = field(default_factory=Runs)
    pods: dict[NamespacedName, dict[str, PodAddress]] = field(default_factory=dict)
    uids: dict[str, NamespacedName] = field(default_factory=dict)
    revisions: Counter[NamespacedName] = field(default_factory=Counter)
    revision: int = 0

    def head_of(self, model: NamespacedName) -> CheckpointHead | None:
        """The head that the model's slug serves: the one of the model's name."""
        head = self.heads.get(model)
        if head is None or head.spec.model_ref.name != model.name:
            return None
        return head

    def pods_of(self, model: NamespacedName, role: str) -> list[PodAddress]:
        """The model's pods of a role, in the order of their names."""
        pods: Mapping[str, PodAddress] = self.pods.get(model, {})
        return [pods[name] for name in sorted(pods) if pods[name].role == role]

    def ready_trainer(self, model: NamespacedName) -> PodAddress | None:
        """The model's trainer pod that takes requests, if there is one."""
        return next((pod for pod in self.pods_of(model, TRAINER) if pod.ready), None)

    def heads_of(self, model: NamespacedName) -> list[CheckpointHead]:
        """The heads that name the model; the one of its name first."""
        found = [
            head
            for name, head in self.heads.items()
            if name.namespace == model.namespace and head.spec.model_ref.name == model.name
        ]
        return sorted(found, key=lambda h: (h.metadata.name != model.name, h.metadata.name))

    def checkpoints_of(self, model: NamespacedName) -> list[Checkpoint]:
        """The model's own checkpoints, in no order."""
        return [
            checkpoint
            for name, checkpoint in self.checkpoints.items()
            if name.namespace == model.namespace and checkpoint.spec.model_ref.name == model.name
        ]

    def runs_of(self, model: NamespacedName) -> list[TrainingRun]:
        """The runs that name the model."""
        return [
            run
            for name, run in self.runs.items()
            if name.namespace == model.namespace and run.spec.model_ref.name == model.name
        ]
