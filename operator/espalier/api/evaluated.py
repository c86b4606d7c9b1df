"""What an evaluation found, in a status."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Metric, Name, Type, list_map

# As many evaluations a checkpoint keeps, each with as many figures.
EVALUATIONS_MOST, EVALUATION_METRICS_MOST = 8, 12


class EvaluationResult(Type):
    """What one evaluation found."""

    name: Name = Field(description="name of the evaluation.")
    tasks: int = Field(ge=1, description="tasks that were asked and scored.")
    metrics: list[Metric] = Field(
        description="metrics of the checkpoint, such as eval/held-out/mean_reward.",
        max_length=EVALUATION_METRICS_MOST,
        json_schema_extra=list_map("name"),
    )
