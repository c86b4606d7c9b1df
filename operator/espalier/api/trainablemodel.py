"""TrainableModel: a fork of a base model or of any checkpoint of another model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.meta import Condition, Name, ObjectMeta, ObjectRef, Type, cel, list_map
from espalier.api.parsers import ReasoningParser, ToolCallParser
from espalier.api.podtemplate import PodTemplate
from espalier.api.source import ImportProgress, Resolved, Source


def _of_lora(schema: dict[str, Any]) -> None:
    """Leaves a default to the code, so that a rule can tell a field that was set."""
    del schema["default"]


def _modules_of_lora(schema: dict[str, Any]) -> None:
    _of_lora(schema)
    schema["x-kubernetes-list-type"] = "atomic"


class Adapter(Type):
    """The trained part of the model."""

    type: Literal["LoRA", "Full"] = Field(
        default="LoRA",
        description="type LoRA trains small matrices beside a frozen base. Full trains every "
        "weight of the base: it takes 32 bytes of memory and 12 bytes of storage per checkpoint "
        "for each, needs trainer.dtype float32, and is served one checkpoint at a time.",
    )
    rank: int = Field(
        default=16,
        ge=1,
        le=256,
        description="rank of the LoRA matrices; 16 if unset.",
        json_schema_extra=_of_lora,
    )
    alpha: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="alpha scales the update of LoRA by alpha / rank; 32 if unset.",
        json_schema_extra=_of_lora,
    )
    target_modules: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        default=["all-linear"],
        description="targetModules of LoRA are names of linear layers, or all-linear (if unset) "
        "for every one but the head.",
        min_length=1,
        max_length=32,
        json_schema_extra=_modules_of_lora,
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="seed of the initial LoRA weights; 0 if unset.",
        json_schema_extra=_of_lora,
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.type == 'LoRA' || !(has(self.rank) || has(self.alpha)"
                " || has(self.targetModules) || has(self.seed))",
                "rank, alpha, targetModules and seed belong to LoRA: remove them or choose it",
            )
        )
    )

    @property
    def lora_rank(self) -> int:
        """The rank, or 0 in full fine-tuning."""
        return self.rank if self.type == "LoRA" else 0


class TrainerSpec(Type):
    """How the trainer runs."""

    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype of the frozen base weights; what is trained is always float32.",
    )
    ranks: int = Field(
        default=1,
        ge=1,
        le=16,
        description="ranks are the processes of the trainer pod that share a batch, one per GPU; "
        "the GPUs themselves are requested in template.resources.",
    )
    startup_seconds: int = Field(
        default=1800,
        ge=60,
        le=86400,
        description="startupSeconds that a pod may take to load the base before it is started "
        "anew: 140 GB at 200 MB/s take 700 s.",
    )
    idle_seconds: int = Field(
        default=1800,
        ge=0,
        le=2592000,
        description="idleSeconds without a call after which the trainer of a run of driver Client "
        "is freed. Nothing is lost: the next call takes it back, and waits for its start. 0 keeps "
        "it for as long as the run lasts.",
    )
    template: PodTemplate | None = Field(default=None, description="template of the trainer pod.")


class JobsSpec(Type):
    """The Jobs that bring bytes to the model's volume and remove them."""

    template: PodTemplate | None = Field(
        default=None,
        description="template of the pods of the importer and the collector. The importer's Job is "
        "made once: delete it to have it started with another template.",
    )


class RolloutSpec(Type):
    """How the model is served."""

    replicas: int = Field(
        default=1,
        ge=0,
        le=64,
        description="replicas of the vLLM server; 0 frees them. The scale subresource writes it: "
        "leave it out of Git where an autoscaler does.",
    )
    max_model_tokens: int = Field(
        default=1024,
        ge=16,
        le=1048576,
        description="maxModelTokens bounds prompt plus completion.",
    )
    max_adapters: int = Field(
        default=4,
        ge=1,
        le=64,
        description="maxAdapters are loaded side by side on a server; with adapter.type Full it "
        "is one checkpoint's weights, whatever this says.",
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="dtype of the served base; spec.trainer.dtype if unset."
    )
    startup_seconds: int = Field(
        default=1800,
        ge=60,
        le=86400,
        description="startupSeconds that a pod may take to load the base before it is started "
        "anew: 140 GB at 200 MB/s take 700 s.",
    )
    tool_call_parser: ToolCallParser = Field(
        default="Auto",
        description="toolCallParser of vLLM turns the text of a tool call into tool_calls. Auto "
        "chooses by the base's family and chat template, as docs/guides/parsers.md lists; where it "
        "finds none, or with None, a request with tools is refused.",
    )
    reasoning_parser: ReasoningParser = Field(
        default="Auto",
        description="reasoningParser of vLLM takes what the model thinks out of content, into "
        "reasoning_content. Auto chooses as for toolCallParser; where it finds none, or with "
        "None, thoughts stay in content.",
    )
    template: PodTemplate | None = Field(default=None, description="template of the rollout pods.")


class ClaimStorage(Type):
    """The claim that holds bases and checkpoints."""

    claim_name: Name = Field(
        description="claimName of a claim that trainer and rollout pods can mount together."
    )


class ScrubSpec(Type):
    """How often, and how fast, what is stored is read through and compared with its digests."""

    interval_hours: int = Field(
        default=168,
        ge=0,
        le=8760,
        description="intervalHours from the end of a scrub to the next; 0 turns it off, but for a "
        "scrub that the annotation espalier.dev/scrub asks for.",
    )
    mebibytes_per_second: int = Field(
        default=64,
        ge=1,
        le=10000,
        description="mebibytesPerSecond that a scrub reads at most.",
    )


class Storage(Type):
    """Where bases and checkpoints are kept."""

    persistent_volume_claim: ClaimStorage = Field(
        description="persistentVolumeClaim holds bases and checkpoints."
    )
    scrub: ScrubSpec = Field(
        default_factory=ScrubSpec,
        description="scrub finds bytes that rotted or are gone, and names them in the conditions "
        "of model and Checkpoints.",
    )


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
        description="storage keeps bases and checkpoints. Immutable.",
        json_schema_extra=cel(
            ("self == oldSelf", "storage is immutable: create another TrainableModel")
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


class Endpoint(Type):
    """Where to sample, and a model also to train."""

    slug: str = Field(description="slug is the model name at the gateway.", max_length=128)
    url: str = Field(description="url of the gateway inside the cluster.", max_length=400)


class Branch(Type):
    """One branch of the checkpoint tree: inside it steps are a line."""

    name: str = Field(description="name of the branch: main, or b<term>.", max_length=32)
    base: str = Field(
        default="", description="base is the Checkpoint that the branch grows from.", max_length=63
    )
    first_step: int = Field(default=0, ge=0, description="firstStep on the branch.")
    last_step: int = Field(default=0, ge=0, description="lastStep on the branch.")
    tip: str = Field(default="", description="tip is the newest Checkpoint.", max_length=63)
    best_reward: str | None = Field(
        default=None,
        description="bestReward is the highest reward/mean measured on it.",
        max_length=32,
    )
    head: bool | None = Field(default=None, description="head is true where the model's head is.")
    superseded: bool | None = Field(
        default=None, description="superseded is true when training went on elsewhere."
    )


class Tree(Type):
    """The checkpoint tree, lossless: every branch by its base and its range of steps."""

    checkpoints: int = Field(default=0, ge=0, description="checkpoints in the tree.")
    branches: list[Branch] = Field(
        default_factory=list,
        description="branches of the tree.",
        max_length=256,
        json_schema_extra=list_map("name"),
    )


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
    endpoint: Endpoint | None = Field(default=None, description="endpoint to sample and train.")
    tree: Tree | None = Field(default=None, description="tree of checkpoints.")
    rollout: RolloutStatus | None = Field(default=None, description="rollout pods that there are.")
    scrub: Scrub | None = Field(default=None, description="scrub of base and checkpoints.")


class TrainableModel(BaseModel):
    """A TrainableModel as read from the API server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metadata: ObjectMeta
    spec: TrainableModelSpec
    status: TrainableModelStatus = Field(default_factory=TrainableModelStatus)
