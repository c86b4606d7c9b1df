"""What a model forks from: as it is asked for, and what that turned out to be."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import (
    ATOMIC,
    DataKey,
    Digest,
    Name,
    OptimizerState,
    ResourceName,
    Type,
    cel,
    explained,
)

REPOSITORY_PATTERN = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$"
REVISION_PATTERN = r"^[a-f0-9]{40}$"
PATH_PATTERN = r"^([A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*)?$"
IMAGE_PATTERN = r"^[^\s]+$"


class SecretKey(Type):
    """A key of a Secret in the same namespace."""

    name: ResourceName = Field(description="name of the Secret in the same namespace.")
    key: DataKey = Field(description="key in the Secret's data.")


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
    token_secret_ref: SecretKey | None = Field(
        default=None,
        description="tokenSecretRef is the hub's token for a private or gated repository. The "
        "importer alone is given it, as a reference: it is in no manifest, log or status.",
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
        pattern=IMAGE_PATTERN,
        json_schema_extra=explained(
            IMAGE_PATTERN,
            "must be an image reference without white space, such as registry.example/model:1",
        ),
    )
    persistent_volume_claim: VolumeBase | None = Field(
        default=None,
        description="persistentVolumeClaim takes the files from a directory on a claim.",
    )
    chat_template: str | None = Field(
        default=None,
        description="chatTemplate is the Jinja template that turns a chat into a prompt, in place "
        "of the base's own. Runs and chat completions need one; a base may have none.",
        min_length=1,
        max_length=65536,
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


class Origin(Type):
    """The checkpoint of another model that a fork starts from."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: Name = Field(description="name of the referenced object in the same namespace.")
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
                "!has(self.adapter) || !has(self.adapter.chatTemplate)",
                "chatTemplate belongs to base: an adapter has none",
                ".adapter.chatTemplate",
            ),
            (
                "!has(self.adapter) || has(self.base)",
                "adapter needs base: name the base that the adapter was trained on",
                ".adapter",
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


class TurnEnd(Type):
    """A token that the chat template closes a turn with."""

    token: str = Field(description="token as text.", max_length=64)
    token_id: int = Field(ge=0, description="tokenId is its number.")

    @property
    def shown(self) -> str:
        """What a message says of one that ends no completion."""
        return f"the chat template closes turns with {self.token!r}, which ends no completion"


class Resolved(Type):
    """What the source turned out to be."""

    uri: str = Field(description="uri of the base on the volume.", max_length=400)
    revision: str = Field(default="", description="revision of the source.", max_length=128)
    digest: Digest = Field(description="digest of the base's manifest.")
    context_tokens: int | None = Field(
        default=None, ge=1, description="contextTokens is the longest context that the base takes."
    )
    chat_template: Literal["Present", "Missing"] | None = Field(
        default=None,
        description="chatTemplate says whether the base has one, or was given one.",
    )
    unstopped_turn_end: TurnEnd | None = Field(
        default=None,
        description="unstoppedTurnEnd is the token that the chat template closes a turn with, "
        "where neither tokenizer nor generation_config.json ends a completion at it. Sample with "
        "it among stopTokenIds.",
    )
    adapter: ImportedAdapter | None = Field(
        default=None, description="adapter is what source.adapter turned out to be."
    )


class ImportProgress(Type):
    """How far the importer is, as it says every 15 seconds."""

    done_bytes: int = Field(
        ge=0, description="doneBytes are on the volume.", json_schema_extra={"format": "int64"}
    )
    total_bytes: int = Field(
        ge=0, description="totalBytes of the source.", json_schema_extra={"format": "int64"}
    )
    bytes_per_second: int = Field(
        ge=0,
        description="bytesPerSecond of late.",
        json_schema_extra={"format": "int64"},
    )
    percent: int = Field(ge=0, le=100, description="percent done.")
