"""Held-out tasks that a run's checkpoints are asked while it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import NonNegativeDecimal, Type, cel, explained
from espalier.api.run.taskset import Taskset

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

End = Literal["Start", "End"]


def _at_end() -> list[End]:
    return ["End"]


class Evaluation(Type):
    """One set of held-out tasks, and when it is asked."""

    name: str = Field(
        description="name of the evaluation; its figures are eval/<name>/mean_reward, "
        "mean_reward_low and mean_reward_high (95 % over tasks), and pass@k.",
        pattern=NAME_PATTERN,
        max_length=30,
        json_schema_extra=explained(
            NAME_PATTERN, "must be lower-case letters, digits and '-', such as held-out"
        ),
    )
    taskset: Taskset = Field(
        description="taskset of held-out tasks; generated ones have another seed than the run's, "
        "and any task that the run trains on is left out. A file is of the same ConfigMap, claim "
        "or image as the run's. The image of python or verifiers has a container of its own, and "
        "what its functions give for the seed is asked as it is. Tasks that are played are paid by "
        "their environment alone, without the run's rewards.",
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        le=10000000,
        description="everySteps is the number of steps between evaluations.",
    )
    at: list[End] = Field(
        default_factory=_at_end,
        description="at Start asks the checkpoint that the run starts from as well (the base has "
        "no Checkpoint: its figures are in status.baseEvaluations of the run); at End the run's "
        "last checkpoint, before the runner ends: the run may say Succeeded, and the next one "
        "train, while these are asked.",
        max_length=2,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    group_size: int = Field(
        default=1, ge=1, le=64, description="groupSize is the number of answers to each task."
    )
    temperature: NonNegativeDecimal = Field(
        default="0",
        description='temperature of these answers, a quoted decimal; "0" is greedy, which needs '
        "groupSize 1.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=131072,
        description="maxTokens of one answer; the run's sampling.maxTokens if unset.",
    )
    pass_at_k: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        default_factory=lambda: [1],
        description="passAtK lists the k of pass@k: the unbiased estimate of the chance that one "
        "of k answers earns a reward of 1.",
        min_length=1,
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.groupSize) || self.groupSize == 1"
                " || (has(self.temperature) && double(self.temperature) > 0.0)",
                "groupSize above 1 needs a temperature above 0: greedy answers are all the same",
                ".temperature",
            ),
            (
                "!has(self.passAtK) || self.passAtK.all(k, k <= (has(self.groupSize)"
                " ? self.groupSize : 1))",
                "passAtK must not be above groupSize",
                ".passAtK",
            ),
            (
                "has(self.everySteps) || !has(self.at) || self.at.size() > 0",
                "nothing says when to evaluate: set everySteps, or at to Start or End",
                ".everySteps",
            ),
        )
    )

    def due(self, step: int, steps: int, *, started: bool) -> bool:
        """Whether the checkpoint of a step is asked.

        ``steps`` are those of the run; ``started``: it is the first that this runner stands on.
        """
        cadence = self.every_steps is not None and step > 0 and step % self.every_steps == 0
        start = "Start" in self.at and started and step == 0
        return cadence or start or ("End" in self.at and step >= steps)
