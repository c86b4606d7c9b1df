"""How sampling and training take turns."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Type, cel


class Schedule(Type):
    """Synchronous, Streaming or Asynchronous."""

    mode: Literal["Synchronous", "Streaming", "Asynchronous"] = Field(
        default="Synchronous",
        description="mode is Synchronous (sample all groups of a step, then train), Streaming "
        "(the same groups, but gradients of a minibatch are added while the rest is sampled) or "
        "Asynchronous (groups of later steps are sampled while a step is trained).",
    )
    minibatches: int | None = Field(
        default=None,
        ge=2,
        le=4096,
        description="minibatches of a step under Streaming, whose gradients add up to one "
        "optimizer step; they divide groupsPerStep. For a step each, see batch.minibatches.",
    )
    max_staleness_steps: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="maxStalenessSteps bounds, under Asynchronous, by how many optimizer steps a "
        "group may be older than the weights that learn from it: at most groupsPerStep * "
        "(maxStalenessSteps + 1) groups are in flight, the oldest are trained first, none is "
        "dropped. 0 equals Synchronous. Choose a loss that clips, such as ppo or cispo, above 0.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "(self.mode == 'Streaming') == has(self.minibatches)",
                "minibatches belongs to mode Streaming, which needs it: set both or "
                "neither; for an optimizer step with each minibatch, set batch.minibatches",
                ".minibatches",
            ),
            (
                "(self.mode == 'Asynchronous') == has(self.maxStalenessSteps)",
                "maxStalenessSteps belongs to mode Asynchronous, which needs it: set both or "
                "neither",
                ".maxStalenessSteps",
            ),
        )
    )
