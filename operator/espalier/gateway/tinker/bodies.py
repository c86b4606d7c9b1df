"""The JSON bodies of Tinker's API that the gateway itself answers.

A newer client may send a field that is unknown here. Empty it asks for nothing and is let through;
anything else is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIN_TTL_SECONDS, MAX_TTL_SECONDS = 3600, 10 * 366 * 86400
MAX_SAMPLES = 128
MAX_TOP_K = 20
MAX_NUMBER = 2**63 - 1

Count = Annotated[int, Field(ge=0, le=10**9 - 1)]
Ttl = Annotated[int, Field(ge=MIN_TTL_SECONDS, le=MAX_TTL_SECONDS)] | None
Metadata = Annotated[dict[str, Any], Field(max_length=64)] | None
SaveMetadata = (
    Annotated[
        dict[
            Annotated[str, Field(max_length=64)],
            Annotated[str, Field(max_length=256)],
        ],
        Field(max_length=16),
    ]
    | None
)


class TinkerBody(BaseModel):
    """Base of the bodies."""

    # Tinker's fields begin with model_ too.
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    @model_validator(mode="after")
    def _nothing_unknown(self) -> TinkerBody:
        asked = sorted(name for name, value in (self.model_extra or {}).items() if value)
        if asked:
            known = ", ".join(type(self).model_fields)
            raise ValueError(
                f"{', '.join(asked)} would have no effect here: leave out what is not of {known}"
            )
        return self


class CreateSession(TinkerBody):
    """POST create_session."""

    tags: list[str] = Field(default_factory=list)
    user_metadata: Metadata = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None
    type: str = ""


class OfSession(TinkerBody):
    """POST session_heartbeat."""

    session_id: str
    type: str = ""


class LoraConfig(TinkerBody):
    """What of a model is trained."""

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(TinkerBody):
    """Which optimizer trains a model."""

    model_config = ConfigDict(extra="ignore")

    type: str = "adamw"


class CreateModel(TinkerBody):
    """POST create_model."""

    session_id: str
    model_seq_id: Count
    base_model: str
    user_metadata: Metadata = None
    lora_config: LoraConfig | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()
    type: str = ""


class LoadWeights(TinkerBody):
    """POST load_weights: a new model of a session, or an older client's own model."""

    session_id: str | None = None
    model_seq_id: Count | None = None
    model_id: str | None = None
    seq_id: Count | None = None
    base_model: str | None = None
    user_metadata: Metadata = None
    path: str
    optimizer: bool
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: str | None = None
    type: str = ""


class OfModel(TinkerBody):
    """POST get_info."""

    model_id: str
    type: str = ""


class SaveWeights(TinkerBody):
    """POST save_weights and save_weights_for_sampler; without a path the save is ephemeral."""

    model_id: str
    seq_id: Count
    path: str | None = None
    sampling_session_seq_id: Count | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: Ttl = None
    overwrite: bool = False
    user_metadata: SaveMetadata = None
    type: str = ""


class SaveFiles(TinkerBody):
    """POST save_weights_external."""

    model_id: str
    seq_id: Count
    path: str
    ttl_seconds: Ttl = None
    age_encryption_recipients: list[str] | None = None
    type: str = ""


class CreateSamplingSession(TinkerBody):
    """POST create_sampling_session."""

    session_id: str
    sampling_session_seq_id: Count
    base_model: str | None = None
    model_path: str | None = None
    type: str = ""


class Chunk(TinkerBody):
    """A part of a prompt; only text has tokens."""

    model_config = ConfigDict(extra="ignore")

    type: str
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(default_factory=list)


class Prompt(TinkerBody):
    """A prompt in its parts."""

    chunks: list[Chunk]


class SamplingParams(TinkerBody):
    """How to sample; ``stop`` is texts or tokens, and an empty list stops at nothing."""

    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | list[int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class Sample(TinkerBody):
    """POST asample."""

    sampling_session_id: str
    seq_id: Annotated[int, Field(ge=0, le=MAX_NUMBER)]
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    prompt: Prompt
    sampling_params: SamplingParams
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_K)] = 0
    topk_sample_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_K)] = 0
    prompt_logprobs_last_n: int | None = None
    type: str = ""


class RetrieveFuture(TinkerBody):
    """POST retrieve_future; ``allow_metadata_only`` permits an answer that is never given here."""

    request_id: Annotated[str, Field(max_length=8 * 2**20)]
    allow_metadata_only: bool = False


class SetTtl(TinkerBody):
    """PUT the life of saved weights; null for ever."""

    ttl_seconds: Ttl = None


class OfPath(TinkerBody):
    """POST weights_info."""

    tinker_path: str
