"""What a run in Git binds the commands of its client to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from espalier.api.objective import Correction, Kl
from espalier.api.run.advantage import Estimator, Scale
from espalier.api.run.loss import Aggregation, ImportanceLevel, RatioAnchor
from espalier.api.wire.base import Wire


class DeclaredOptimizer(Wire):
    """All settings of AdamW."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float


class RateSchedule(Wire):
    """How the learning rate goes from its highest, ``Declared.learning_rate``, over ``steps``."""

    type: Literal["Constant", "Linear", "Cosine"]
    warmup_steps: int
    minimum: float
    steps: int


class Declared(Wire):
    """What the commands of a run's client must say; what is None, the client decides."""

    run: str
    loss_fn: str | None = None
    loss_fn_config: dict[str, float] = Field(default_factory=dict)
    aggregation: Aggregation | None = None
    aggregation_constant: int | None = None
    importance_level: ImportanceLevel | None = None
    ratio_anchor: RatioAnchor | None = None
    correction: Correction | None = None
    kl: Kl | None = None
    entropy_coefficient: float | None = None
    learning_rate: float | None = None
    learning_rate_schedule: RateSchedule | None = None
    optimizer: DeclaredOptimizer | None = None
    advantage_source: Literal["Estimated", "Precomputed"] | None = None
    advantage_estimator: Estimator | None = None
    advantage_scale: Scale | None = None
    group_size: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
