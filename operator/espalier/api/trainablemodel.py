"""TrainableModel: a fork of a base model or of any checkpoint of another model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.meta import ObjectMeta, Type, cel
from espalier.api.model.adapter import Adapter
from espalier.api.model.jobs import JobsSpec
from espalier.api.model.rollout import RolloutSpec
from espalier.api.model.status import TrainableModelStatus
from espalier.api.model.storage import Storage
from espalier.api.model.trainer import TrainerSpec
from espalier.api.source import Source


class TrainableModelSpec(Type):
    """The desired fork. Only Git or a user writes it."""

    source: Source = Field(
        description="source is what the model forks from. Immutable.",
        json_schema_extra=cel(
            (
                "self == oldSelf",
                "source is immutable: create another TrainableModel",
            )
        ),
    )
    adapter: Adapter = Field(
        default_factory=Adapter,
        description="adapter is the trained part. Immutable.",
        json_schema_extra={
            "default": {"type": "LoRA"},
            **cel(("self == oldSelf", "adapter is immutable: create another TrainableModel")),
        },
    )
    trainer: TrainerSpec = Field(
        default_factory=TrainerSpec, description="trainer says how the trainer runs."
    )
    rollout: RolloutSpec = Field(
        default_factory=RolloutSpec, description="rollout says how the model is served."
    )
    jobs: JobsSpec = Field(
        default_factory=JobsSpec, description="jobs are the importer and the collector."
    )
    storage: Storage = Field(
        description="storage keeps bases and checkpoints. Its claim is immutable.",
        json_schema_extra=cel(
            (
                "self.persistentVolumeClaim == oldSelf.persistentVolumeClaim",
                "storage.persistentVolumeClaim is immutable: create another TrainableModel",
            )
        ),
    )
    deletion_policy: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="deletionPolicy of the bytes. Retain: deleting a Checkpoint or this model "
        "leaves them on the volume, where espalier adopt finds them. Delete: the bytes of a "
        "deleted Checkpoint are removed, and deleting this model deletes its Checkpoints.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.adapter.type != 'Full' || self.trainer.dtype == 'float32'",
                "dtype must be float32 where adapter.type is Full: the base itself is trained",
                ".trainer.dtype",
            ),
            (
                "self.adapter.type == 'LoRA' || !has(self.source.adapter)",
                "source.adapter needs adapter.type LoRA: merge it into its base and fork from that",
                ".source.adapter",
            ),
        )
    )


class TrainableModel(BaseModel):
    """A TrainableModel as read from the API server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metadata: ObjectMeta
    spec: TrainableModelSpec
    status: TrainableModelStatus = Field(default_factory=TrainableModelStatus)
