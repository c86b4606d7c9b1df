"""TrainableModel: a fork of a base model or of any checkpoint of another model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.meta import (
    Condition,
    Digest,
    LabelValue,
    Name,
    ObjectMeta,
    ObjectRef,
    OptimizerState,
    Quantity,
    Type,
    cel,
    explained,
    list_map,
)

REPOSITORY_PATTERN = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$"
REVISION_PATTERN = r"^[a-f0-9]{40}$"
PATH_PATTERN = r"^([A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*)?$"


class HuggingFaceBase(Type):
    """A model of the Hugging Face hub."""

    repository: str = Field(
        description="repository as owner/name, for example Qwen/Qwen3-0.6B.",
        pattern=REPOSITORY_PATTERN,
        max_length=200,
        json_schema_extra=explained(
            REPOSITORY_PATTERN, "must be owner/name as on the hub, such as Qwen/Qwen3-0.6B"
        ),
    )
    revision: str = Field(
        description="revision is a full commit hash, so that the fork is reproducible.",
        pattern=REVISION_PATTERN,
        max_length=64,
        json_schema_extra=explained(
            REVISION_PATTERN,
            "must be a full commit hash of 40 hex digits: a branch or tag can move",
        ),
    )


class VolumeBase(Type):
    """A model directory on an existing claim."""

    claim_name: Name = Field(description="claimName of the claim that holds the model.")
    path: str = Field(
        default="",
        description="path of the model directory inside the claim, relative, without '..'.",
        pattern=PATH_PATTERN,
        max_length=400,
        json_schema_extra=explained(
            PATH_PATTERN, "must be a relative path inside the claim without '..', such as models/a"
        ),
    )


class Base(Type):
    """Where a base model, or an adapter, comes from; exactly one member."""

    hugging_face: HuggingFaceBase | None = Field(
        default=None, description="huggingFace takes the files from the Hugging Face hub."
    )
    image: str | None = Field(
        default=None,
        description="image is an OCI image with the files under /models (a modelcar). "
        "They are copied to the volume once and their digest recorded.",
        min_length=1,
        max_length=400,
    )
    persistent_volume_claim: VolumeBase | None = Field(
        default=None,
        description="persistentVolumeClaim takes the files from a directory on a claim.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "[has(self.huggingFace), has(self.image), has(self.persistentVolumeClaim)]"
                ".filter(x, x).size() == 1",
                "set exactly one of huggingFace, image and persistentVolumeClaim",
            )
        )
    )


class Origin(ObjectRef):
    """The checkpoint of another model that a fork starts from."""

    optimizer_state: OptimizerState = Field(
        default="Keep",
        description="optimizerState Keep takes Adam's moments over with the weights; Reset starts "
        "from fresh ones, as another learning rate, loss or task may want.",
    )


class Source(Type):
    """What the model forks from: a base, a base with an adapter, or a checkpoint."""

    base: Base | None = Field(default=None, description="base is a pretrained model.")
    adapter: Base | None = Field(
        default=None,
        description="adapter is a LoRA adapter of PEFT, trained elsewhere on the same base. It "
        "becomes the model's Checkpoint of step 0; spec.adapter must be as it was trained.",
    )
    checkpoint_ref: Origin | None = Field(
        default=None,
        description="checkpointRef is a Checkpoint of another TrainableModel in this namespace.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.base) != has(self.checkpointRef)",
                "set exactly one of base and checkpointRef",
            ),
            (
                "!has(self.adapter) || has(self.base)",
                "adapter needs base: name the base that the adapter was trained on",
                ".adapter",
            ),
        )
    )


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
        "for each, needs trainer.dtype float32, and cannot be served yet (rollout.replicas: 0).",
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


class Toleration(Type):
    """A toleration as in core/v1."""

    key: str | None = Field(default=None, description="key of the taint.", max_length=317)
    operator: Literal["Exists", "Equal"] | None = Field(
        default=None, description="operator is Exists or Equal."
    )
    value: str | None = Field(default=None, description="value of the taint.", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="effect of the taint."
    )


class Resources(Type):
    """Compute resources as in core/v1."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        description="requests by resource name, as quantities.",
        max_length=16,
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict, description="limits by resource name, as quantities.", max_length=16
    )


class PodTemplate(Type):
    """What a user may set of a pod: where it runs and what it gets, never what it may do."""

    resources: Resources | None = Field(
        default=None, description="resources of the main container."
    )
    node_selector: dict[str, LabelValue] | None = Field(
        default=None, description="nodeSelector of the pod.", max_length=32
    )
    tolerations: list[Toleration] | None = Field(
        default=None,
        description="tolerations of the pod.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    priority_class_name: Name | None = Field(
        default=None, description="priorityClassName of the pod."
    )


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
    template: PodTemplate | None = Field(default=None, description="template of the trainer pod.")


class RolloutSpec(Type):
    """How the model is served."""

    replicas: int = Field(
        default=1, ge=0, le=64, description="replicas of the vLLM server; 0 frees them."
    )
    max_model_tokens: int = Field(
        default=1024,
        ge=16,
        le=1048576,
        description="maxModelTokens bounds prompt plus completion.",
    )
    max_adapters: int = Field(
        default=4, ge=1, le=64, description="maxAdapters are loaded side by side on a server."
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="dtype of the served base; spec.trainer.dtype if unset."
    )
    template: PodTemplate | None = Field(default=None, description="template of the rollout pods.")


class ClaimStorage(Type):
    """The claim that holds bases and checkpoints."""

    claim_name: Name = Field(
        description="claimName of a claim that trainer and rollout pods can mount together."
    )


class Storage(Type):
    """Where bases and checkpoints are kept."""

    persistent_volume_claim: ClaimStorage = Field(
        description="persistentVolumeClaim holds bases and checkpoints."
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


class ImportedAdapter(Type):
    """An adapter from outside, as it lies on the volume."""

    digest: Digest = Field(description="digest of the adapter's manifest.")
    size_bytes: int = Field(
        default=0,
        ge=0,
        description="sizeBytes of the adapter.",
        json_schema_extra={"format": "int64"},
    )


class Resolved(Type):
    """What the source turned out to be."""

    uri: str = Field(description="uri of the base on the volume.", max_length=400)
    revision: str = Field(default="", description="revision of the source.", max_length=128)
    digest: Digest = Field(description="digest of the base's manifest.")
    adapter: ImportedAdapter | None = Field(
        default=None, description="adapter is what source.adapter turned out to be."
    )


class Endpoint(Type):
    """Where to sample, and a model also to train."""

    slug: str = Field(description="slug is the model name at the gateway.", max_length=128)
    url: str = Field(description="url of the gateway inside the cluster.", max_length=400)


class Branch(Type):
    """One branch of the checkpoint tree: inside it steps are a line."""

    name: str = Field(description="name of the branch: main, or b<epoch>.", max_length=32)
    base: str = Field(
        default="", description="base is the Checkpoint that the branch grows from.", max_length=63
    )
    first_step: int = Field(default=0, ge=0, description="firstStep on the branch.")
    last_step: int = Field(default=0, ge=0, description="lastStep on the branch.")
    tip: str = Field(default="", description="tip is the newest Checkpoint.", max_length=63)
    best_reward: str | None = Field(
        default=None, description="bestReward is the highest reward/mean on it.", max_length=32
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


class TrainableModelStatus(Type):
    """The observed fork. Only the operator writes it."""

    conditions: list[Condition] = Field(
        default_factory=list,
        description="conditions are Ready, Reconciling, Stalled, SourceResolved, TrainerReady, "
        "RolloutsReady, FastPath and VolumeHealthy.",
        max_length=12,
        json_schema_extra=list_map("type"),
    )
    observed_generation: int = Field(
        default=-1, description="observedGeneration last reconciled; -1 before the first pass."
    )
    resolved: Resolved | None = Field(default=None, description="resolved source.")
    root_checkpoint_ref: ObjectRef | None = Field(
        default=None, description="rootCheckpointRef is the checkpoint the fork started from."
    )
    endpoint: Endpoint | None = Field(default=None, description="endpoint to sample and train.")
    tree: Tree | None = Field(default=None, description="tree of checkpoints.")


class TrainableModel(BaseModel):
    """A TrainableModel as read from the API server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metadata: ObjectMeta
    spec: TrainableModelSpec
    status: TrainableModelStatus = Field(default_factory=TrainableModelStatus)
