"""Checkpoint: one committed optimizer step, a node of the tree; the operator writes it.

An adapter from outside is the node of step 0.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.evaluated import EVALUATIONS_MOST, EvaluationResult
from espalier.api.meta import (
    METRICS_MOST,
    Condition,
    Digest,
    Metric,
    Name,
    ObjectMeta,
    ObjectRef,
    Type,
    cel,
    list_map,
)
from espalier.api.metric_names import MEASURED_MOST
from espalier.api.saved import SAVES_MOST, Save


class Hyperparameters(Type):
    """What the step was taken with."""

    learning_rate: str = Field(default="", description="learningRate applied.", max_length=32)
    group_size: int = Field(default=0, ge=0, description="groupSize applied.")
    loss: str = Field(default="", description="loss applied.", max_length=64)


class CheckpointSpec(Type):
    """What was committed. Immutable."""

    model_ref: ObjectRef = Field(description="modelRef names the TrainableModel.")
    run_ref: ObjectRef | None = Field(default=None, description="runRef names the TrainingRun.")
    parent_ref: ObjectRef | None = Field(
        default=None,
        description="parentRef is the Checkpoint that the step started from; of another model at "
        "the root of a fork, absent at the root of a base.",
    )
    step: int = Field(
        ge=0,
        description="step counts optimizer steps along the lineage; 0 is an imported adapter.",
    )
    branch: str = Field(
        description="branch is main, or b<term> after a rollback.",
        pattern=r"^(main|b[0-9]+)$",
        max_length=32,
    )
    term: int = Field(ge=1, description="term of the head that the step was taken under.")
    uri: str = Field(description="uri of the bytes on the volume.", max_length=400)
    digest: Digest = Field(description="digest of the checkpoint's manifest.")
    size_bytes: int = Field(
        default=0,
        ge=0,
        description="sizeBytes of the checkpoint.",
        json_schema_extra={"format": "int64"},
    )
    lora_rank: int = Field(default=0, ge=0, description="loraRank of the adapter.")
    hyperparameters: Hyperparameters = Field(
        default_factory=Hyperparameters, description="hyperparameters of the step."
    )


class CheckpointStatus(Type):
    """Where the checkpoint is used. Only the operator writes it."""

    conditions: list[Condition] = Field(
        default_factory=list,
        description="conditions are Ready, InUse and Superseded.",
        max_length=12,
        json_schema_extra=list_map("type"),
    )
    observed_generation: int = Field(
        default=-1, description="observedGeneration last reconciled; -1 before the first pass."
    )
    heads: list[Name] = Field(
        default_factory=list,
        description="heads whose current checkpoint this is.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    head_mark: str | None = Field(
        default=None, description="headMark is '> ' and the heads, for tables.", max_length=400
    )
    metrics: list[Metric] = Field(
        default_factory=list,
        description="metrics of the step that made the checkpoint, such as rollout/reward/mean of "
        "the samples that it was taken with; and what was measured of the checkpoint itself: "
        "reward/..., by the samples for the next step, and eval/...",
        max_length=METRICS_MOST + MEASURED_MOST,
        json_schema_extra=list_map("name"),
    )
    evaluations: list[EvaluationResult] = Field(
        default_factory=list,
        description="evaluations of the checkpoint, the latest of each name; their metrics are "
        "among the metrics above. The gateway writes them.",
        max_length=EVALUATIONS_MOST,
        json_schema_extra=list_map("name"),
    )
    saves: list[Save] = Field(
        default_factory=list,
        description="saves are the names of Tinker's clients for the checkpoint, which is kept as "
        "long as it has one. The gateway writes them.",
        max_length=SAVES_MOST,
        json_schema_extra=list_map("path"),
    )


class Checkpoint(BaseModel):
    """A Checkpoint as read from the API server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metadata: ObjectMeta
    spec: CheckpointSpec
    status: CheckpointStatus = Field(default_factory=CheckpointStatus)


SPEC_RULES = cel(
    ("self == oldSelf", "a Checkpoint's spec is immutable"),
    (
        "self.step > 0 || (self.branch == 'main' && !has(self.parentRef) && !has(self.runRef))",
        "step 0 is an adapter from outside: it lies on main, without parentRef and runRef",
        ".step",
    ),
)
