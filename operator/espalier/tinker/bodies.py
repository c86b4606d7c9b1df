"""The JSON bodies of a model's commands: as Tinker's SDK sends them, and as the trainer takes them.

Unknown fields are refused: what we cannot honour must not seem to be.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from espalier.api.wire.base import Real, Whole
from espalier.api.wire.step import OptimStepRequest

Seq = Annotated[Whole, Field(ge=1, le=2**31 - 1)]
Metadata = dict[str, Any]


class Body(BaseModel):
    """Base of the bodies: frozen, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


class Numbered(Body):
    """A command of a model; its first is number 1, the model itself was number 0."""

    model_id: str
    seq_id: Seq


class AdamParams(Body):
    """AdamW with Tinker's defaults: ``eps`` is not HUD's, and a ``grad_clip_norm`` of 0 is off."""

    learning_rate: Real = Field(default=1e-4, gt=0)
    beta1: Real = Field(default=0.9, ge=0, lt=1)
    beta2: Real = Field(default=0.95, ge=0, lt=1)
    eps: Real = Field(default=1e-12, gt=0)
    weight_decay: Real = Field(default=0.0, ge=0)
    grad_clip_norm: Real = Field(default=0.0, ge=0)


class OptimStep(Numbered):
    """One optimizer step."""

    adam_params: AdamParams
    type: Literal["optim_step"] = "optim_step"

    @model_validator(mode="before")
    @classmethod
    def _only_adam(cls, given: Any) -> Any:
        if isinstance(given, dict) and "optimizer_params" in given:
            raise ValueError("optimizer_params are of another optimizer, and only AdamW is there")
        return given

    def request(self) -> OptimStepRequest:
        """As the trainer takes a step."""
        return OptimStepRequest(**self.adam_params.model_dump())


class SaveWeights(Numbered):
    """Names where the training stands, with Adam's state."""

    path: str | None = None
    ttl_seconds: Whole | None = None
    overwrite: Annotated[bool, Strict()] = False
    user_metadata: Metadata | None = None
    type: Literal["save_weights"] = "save_weights"


class SaveWeightsForSampler(Numbered):
    """Names where the training stands, or without ``path`` makes a sampler of it."""

    path: str | None = None
    sampling_session_seq_id: Whole | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: Whole | None = None
    user_metadata: Metadata | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


Save = Annotated[SaveWeights | SaveWeightsForSampler, Field(discriminator="type")]


class LoadWeights(Numbered):
    """From the gateway, which has resolved the client's path: the checkpoint to go to.

    ``digest`` is of a checkpoint on the volume. Without ``optimizer`` Adam starts anew.
    """

    digest: Annotated[str, Field(pattern=r"^sha256:[a-f0-9]{64}$")]
    optimizer: Annotated[bool, Strict()]
    type: Literal["load_weights"] = "load_weights"


class Standing(Body):
    """The result of a save or a load: the checkpoint where the training stands.

    Empty names are the base: no step was taken yet. ``request`` is the save as it was sent.
    """

    checkpoint: str
    digest: str
    step: int
    request: Save | None = None


class Stepped(Body):
    """The result of an optimizer step; the SDK reads what is in ``metrics`` alone."""

    metrics: dict[str, float]


class Pending(Body):
    """408: the command has no result yet; ``reason`` and ``detail`` say what it waits for."""

    reason: str
    detail: str
