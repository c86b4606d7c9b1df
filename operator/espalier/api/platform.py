"""HUD's platform API, as its client and command line speak it (``/v2/models``).

Answers carry HUD's fields alone. Ids are Kubernetes' own: a model's uid, a checkpoint's name.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# The agent of HUD's client that speaks OpenAI's chat completions.
AGENT = "openai_compatible"


class Platform(BaseModel):
    """Base of the platform types: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Provider(Platform):
    """Who serves a model."""

    name: str = "espalier"


class ModelEntry(Platform):
    """A model of the catalogue; ``model_name`` is what completions and TrainingClient take.

    ``is_trainable``: whether the caller can train it as it is, or fork it.
    """

    id: str
    name: str
    model_name: str
    sdk_agent_type: str = AGENT
    is_trainable: bool
    provider: Provider = Field(default_factory=Provider)
    created_at: str | None = None
    released_at: str | None = None
    deprecated_at: str | None = None


class ModelPage(Platform):
    """A page of the catalogue; ``total`` counts what the caller may see."""

    items: list[ModelEntry]
    total: int


class CheckpointEntry(Platform):
    """A node of a model's tree; ``is_active`` marks what the model's head serves."""

    id: str
    name: str
    checkpoint_name: str
    prev_model_checkpoint_id: str | None = None
    is_active: bool = False
    created_at: str | None = None
    num_traces: int | None = None
    num_datums: int | None = None
    num_tokens: int | None = None
    mean_reward: float | None = None
    learning_rate: float | None = None
    loss_fn: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class ForkRequest(Platform):
    """A fork of a model at its active checkpoint, under a new name."""

    source_model_id: str
    name: str


class HeadRequest(Platform):
    """The checkpoint to serve and to train on from."""

    checkpoint_id: str


class Report(BaseModel):
    """Base of the reports of HUD's client about rollouts; unknown fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class JobReport(Report):
    """A batch of rollouts began."""

    name: str = ""
    group: int = 1
    taskset_id: str | None = None


class TraceEnter(Report):
    """A rollout began."""

    job_id: str | None = None
    group_id: str | None = None
    task_slug: str = ""
    model: str | None = None
    parent_trace_id: str | None = None


class TraceExit(Report):
    """A rollout ended: ``status`` completed, error or cancelled."""

    status: str = "completed"
    reward: float | None = None
    error: str | None = None
    evaluation_result: dict[str, Any] | None = None
    stop_reason: str | None = None
    metadata: dict[str, Any] | None = None


class TraceRecord(Platform):
    """Every part of a trace that a trainer keeps."""

    id: str
    job: dict[str, Any] | None = None
    enter: dict[str, Any] | None = None
    exit: dict[str, Any] | None = None
    samples: list[dict[str, Any]] = Field(default_factory=list)
