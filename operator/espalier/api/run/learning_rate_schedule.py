"""How the learning rate of a run goes over its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import NonNegativeDecimal, Type, cel


class LearningRateSchedule(Type):
    """The learning rate of each step: a warm-up, then constant or falling."""

    type: Literal["Constant", "Linear", "Cosine"] = Field(
        default="Constant",
        description="type is Constant (learningRate at every step after the warm-up), Linear or "
        "Cosine (from learningRate at the first of them towards minimum, which it would reach one "
        "step after the last of steps; more steps stretch what is left of it).",
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=10000000,
        description="warmupSteps at the start, over which the rate rises in equal parts of "
        "learningRate up to all of it; fewer than steps.",
    )
    minimum: NonNegativeDecimal = Field(
        default="0",
        description="minimum that Linear and Cosine fall towards, a quoted decimal such as "
        '"1e-6"; at most learningRate.',
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.type != 'Constant' || double(self.minimum) == 0.0",
                "minimum belongs to Linear and Cosine: remove it or choose one of them",
                ".minimum",
            )
        )
    )
