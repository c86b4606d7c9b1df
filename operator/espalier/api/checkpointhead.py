"""CheckpointHead: what the slug serves and what training continues from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.meta import (
    Condition,
    DecimalString,
    MeasuredMetric,
    ObjectMeta,
    ObjectRef,
    Type,
    cel,
    list_map,
)
from espalier.api.model.status import Endpoint


class Gate(Type):
    """A metric that a checkpoint must reach before a tracking head advances over it."""

    metric: MeasuredMetric = Field(
        description="metric that is measured of a Checkpoint itself: reward/mean, which the "
        "samples for the next step give, another reward/..., or eval/..., which a client sends.",
    )
    min: DecimalString = Field(
        description='min is the lowest value, a quoted decimal such as "0.42".'
    )


Mode = Literal["Track", "Pin"]
OnPin = Literal["Pause", "Branch", "Continue"]


class CheckpointHeadSpec(Type):
    """The desired head. Only Git or a user writes it."""

    model_ref: ObjectRef = Field(
        description="modelRef names the TrainableModel in the same namespace. Immutable.",
        json_schema_extra=cel(("self == oldSelf", "modelRef is immutable: create another head")),
    )
    # Required, so that Git always states it and a hand edit shows as drift.
    mode: Mode = Field(
        description="mode is Track (follow the newest Ready checkpoint) or Pin (hold "
        "checkpointRef)."
    )
    checkpoint_ref: ObjectRef | None = Field(
        default=None,
        description="checkpointRef is the pinned checkpoint. Ignored when mode is Track.",
    )
    on_pin: OnPin = Field(
        default="Pause",
        description="onPin says what the run does while the head is pinned: Pause it, Branch from "
        "the pinned checkpoint, or Continue unaffected.",
    )
    gate: Gate | None = Field(
        default=None, description="gate lets Track advance only over checkpoints that pass it."
    )

    # One-way on purpose: a two-way rule would wedge Argo CD's self-heal.
    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.mode != 'Pin' || has(self.checkpointRef)",
                "mode Pin needs checkpointRef: name the Checkpoint to hold",
                ".checkpointRef",
            )
        )
    )


class Agreed(Type):
    """What a head asked for when the operator last agreed; fields its mode ignores are left out."""

    generation: int = Field(ge=0, description="generation of the edit that asked for it.")
    mode: Mode = Field(description="mode that was agreed to.")
    checkpoint_ref: ObjectRef | None = Field(
        default=None, description="checkpointRef is the checkpoint that mode Pin holds."
    )
    on_pin: OnPin | None = Field(
        default=None,
        description="onPin says what the run does meanwhile; Continue under a head that training "
        "does not follow.",
    )

    @property
    def name(self) -> str:
        """The name of the pinned checkpoint; empty without a pin."""
        return self.checkpoint_ref.name if self.checkpoint_ref is not None else ""

    def asks_same(self, other: Agreed) -> bool:
        """Whether both ask for the same, whichever edit it came with."""
        return (self.mode, self.name, self.on_pin) == (other.mode, other.name, other.on_pin)


class CurrentCheckpoint(Type):
    """The actuated checkpoint."""

    name: str = Field(description="name of the Checkpoint; empty for the base.", max_length=63)
    step: int = Field(default=0, ge=0, description="step of the Checkpoint; 0 for the base.")
    digest: str = Field(default="", description="digest that was loaded.", max_length=71)
    term: int = Field(default=0, ge=0, description="term in which it became current.")


class HeadEditor(Type):
    """Who edited what a head asks for, as the API server keeps it of every field."""

    manager: str = Field(
        description="manager of the fields: the program, such as kubectl-edit, argocd-controller, "
        "or espalier-gateway for whoever moved the head through the gateway.",
        max_length=128,
    )
    user: str = Field(
        default="",
        description="user for whom espalier-gateway edited it; the API server keeps no user of "
        "others.",
        max_length=316,
    )
    time: str = Field(
        description="time of the edit.", max_length=32, json_schema_extra={"format": "date-time"}
    )

    def __str__(self) -> str:
        return f"{self.user} through {self.manager}" if self.user else self.manager


class HeadMove(Type):
    """One move of the head."""

    name: str = Field(description="name of the Checkpoint; empty for the base.", max_length=63)
    step: int = Field(default=0, ge=0, description="step of the Checkpoint.")
    term: int = Field(default=0, ge=0, description="term of the move.")
    reason: Literal["Advanced", "Pinned", "Unpinned", "Branched"] = Field(
        description="reason of the move."
    )
    time: str = Field(
        description="time of the move.", max_length=32, json_schema_extra={"format": "date-time"}
    )
    editor: HeadEditor | None = Field(
        default=None,
        description="editor is who asked for the move; absent where training advanced the head.",
    )


class PodDigest(Type):
    """What one rollout pod serves."""

    name: str = Field(description="name of the pod.", max_length=253)
    digest: str = Field(
        default="", description="digest that it serves; empty for the base.", max_length=71
    )


class NameOnly(Type):
    """A checkpoint by name; empty for the base."""

    name: str = Field(description="name of the Checkpoint; empty for the base.", max_length=63)


class CheckpointHeadStatus(Type):
    """The observed head. Only the operator writes it."""

    conditions: list[Condition] = Field(
        default_factory=list,
        description="conditions are Ready, Reconciling, Stalled and Pinned.",
        max_length=12,
        json_schema_extra=list_map("type"),
    )
    observed_generation: int = Field(
        default=-1, description="observedGeneration last reconciled; -1 before the first pass."
    )
    target: NameOnly | None = Field(
        default=None, description="target is accepted, perhaps not yet served."
    )
    current: CurrentCheckpoint | None = Field(
        default=None, description="current is what the rollouts serve."
    )
    previous: NameOnly | None = Field(default=None, description="previous was current before.")
    latest: NameOnly | None = Field(
        default=None, description="latest is the newest Ready checkpoint of the live branch."
    )
    branch: str = Field(default="main", description="branch that training extends.", max_length=32)
    branch_base: NameOnly | None = Field(
        default=None,
        description="branchBase is where onPin: Branch grew the live branch; Track follows its "
        "descendants.",
    )
    agreed: Agreed | None = Field(
        default=None,
        description="agreed is the part of spec that the operator last agreed to; a pin that "
        "cannot be met leaves it as it is.",
    )
    term: int = Field(
        default=0, ge=0, description="term grows on every move that is not a fast-forward."
    )
    history: list[HeadMove] = Field(
        default_factory=list,
        description="history of moves, newest first.",
        max_length=20,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    endpoint: Endpoint | None = Field(
        default=None, description="endpoint is where what the head serves is sampled."
    )
    pods: list[PodDigest] = Field(
        default_factory=list,
        description="pods and what each confirmed that it serves.",
        max_length=64,
        json_schema_extra=list_map("name"),
    )


class CheckpointHead(BaseModel):
    """A CheckpointHead as read from the API server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metadata: ObjectMeta
    spec: CheckpointHeadSpec
    status: CheckpointHeadStatus = Field(default_factory=CheckpointHeadStatus)
