"""The status of a TrainableModel."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Condition, Name, ObjectRef, Type, list_map
from espalier.api.model.tree import Tree
from espalier.api.source import ImportProgress, Resolved


class Endpoint(Type):
    """Where to sample, and a model also to train."""

    slug: str = Field(description="slug is the model name at the gateway.", max_length=128)
    url: str = Field(description="url of the gateway inside the cluster.", max_length=400)


class RolloutStatus(Type):
    """The rollout pods, for autoscalers: the scale subresource reads them here."""

    replicas: int = Field(default=0, ge=0, description="replicas that there are, ready or not.")
    selector: str = Field(
        default="", description="selector of the pods, by their labels.", max_length=512
    )


class Scrub(Type):
    """The scrub under way, or else the last one."""

    began: str = Field(description="began says when, RFC 3339.", max_length=32)
    ended: str | None = Field(
        default=None, description="ended says when; absent while it is under way.", max_length=32
    )
    after: str | None = Field(
        default=None,
        description="after is the last Checkpoint that was read; empty when it was the base.",
        max_length=63,
    )
    checkpoints: int = Field(default=0, ge=0, description="checkpoints that were read.")
    read_bytes: int = Field(default=0, ge=0, description="readBytes of base and checkpoints.")
    rotten: list[Name] = Field(
        default_factory=list,
        description="rotten are the Checkpoints whose bytes are not those of their digests.",
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    rotten_count: int = Field(default=0, ge=0, description="rottenCount of Checkpoints.")
    rotten_base: str | None = Field(
        default=None, description="rottenBase says what is wrong with the base.", max_length=400
    )
    requested: str = Field(
        default="", description="requested by this value of the annotation.", max_length=256
    )
    retry: str | None = Field(
        default=None, description="retry is when a Job that failed is made again.", max_length=32
    )
    failure: str | None = Field(
        default=None, description="failure of the last Job.", max_length=400
    )


# Entries of ``status.reads``.
MOST_READS = 64


class Read(Type):
    """A Checkpoint of another model that the pods of this one read."""

    checkpoint: Name = Field(description="checkpoint is its name.")
    model: Name = Field(description="model whose folder of the claim the pods read for it.")


class TrainableModelStatus(Type):
    """The observed fork. Only the operator writes it."""

    conditions: list[Condition] = Field(
        default_factory=list,
        description="conditions are Ready, Reconciling, Stalled, SourceResolved, TrainerReady, "
        "RolloutsReady, FastPath, VolumeHealthy and BytesIntact.",
        max_length=12,
        json_schema_extra=list_map("type"),
    )
    observed_generation: int = Field(
        default=-1, description="observedGeneration last reconciled; -1 before the first pass."
    )
    resolved: Resolved | None = Field(default=None, description="resolved source.")
    source: str | None = Field(
        default=None, description="source in a word, as it is listed.", max_length=400
    )
    import_progress: ImportProgress | None = Field(
        default=None, description="importProgress while the base is brought to the volume."
    )
    root_checkpoint_ref: ObjectRef | None = Field(
        default=None, description="rootCheckpointRef is the checkpoint the fork started from."
    )
    reads: list[Read] = Field(
        default_factory=list,
        description="reads are the Checkpoints of other models that the pods need: the one that "
        "the model forks from, and for the trainer the kl.reference of each run that is not over, "
        "while it is its turn.",
        max_length=MOST_READS,
        json_schema_extra=list_map("checkpoint"),
    )
    endpoint: Endpoint | None = Field(default=None, description="endpoint to sample and train.")
    tree: Tree | None = Field(default=None, description="tree of checkpoints.")
    rollout: RolloutStatus | None = Field(default=None, description="rollout pods that there are.")
    scrub: Scrub | None = Field(default=None, description="scrub of base and checkpoints.")
