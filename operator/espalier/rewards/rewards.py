"""All rewards of a run: each completion of a group gets every one of them, and their sum."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from espalier.api.run.rewards import Aggregation, OnRewardError
from espalier.rewards.combine import weighted, with_advantages
from espalier.rewards.failure import RewardFailedError
from espalier.rewards.figures import TASKSET
from espalier.rewards.lengths import LengthRules
from espalier.rewards.scored import Failed, Given, Question, Scored, Task, Written


class Source(Protocol):
    """What gives one reward: a scoring worker, a service, a judge."""

    async def ready(self) -> Mapping[str, object]:
        """Waits until it can be asked; what there is to say of it for the log."""
        ...

    async def give(self, question: Question, written: Written) -> Given:
        """The reward of a completion, within its time; it raises for what no policy can mend."""
        ...

    async def close(self) -> None:
        """Ends what it started."""
        ...


@dataclass(frozen=True)
class Part:
    """One declared reward.

    Attributes:
        remedy: for a run that a failure of it stops.
    """

    name: str
    source: Source
    weight: float = 1.0
    on_error: OnRewardError = "Drop"
    remedy: str = ""


@dataclass
class Rewards:
    """Scores groups.

    Args:
        parts: at least one.
        answer: gives the expected answer of a task by its number.
        lengths: what long completions are worth.
        aggregation: whether advantages come from here.
    """

    parts: Sequence[Part]
    answer: Callable[[int], str | None]
    lengths: LengthRules
    aggregation: Aggregation = "SumThenNormalize"
    _weights: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self._weights = {part.name: part.weight for part in self.parts} | self.lengths.weights

    async def __aenter__(self) -> Rewards:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def ready(self) -> dict[str, object]:
        """Waits until every reward can be asked; what there is to say of them for the log."""
        found: dict[str, object] = {}
        for part in self.parts:
            found |= await part.source.ready()
        return found

    async def close(self) -> None:
        """Ends everything that scores."""
        await asyncio.gather(*(part.source.close() for part in self.parts))

    async def score(self, index: int, task: Task, completions: Sequence[Written]) -> list[Scored]:
        """The completions of one group, in order.

        Raises:
            RewardFailedError: a reward could not be had whose onError says Fail.
        """
        question = Question.of(index, task, self.answer(index))
        scored = await asyncio.gather(*(self._completion(question, one) for one in completions))
        return with_advantages(scored, self._weights, self.aggregation)

    async def _completion(self, question: Question, written: Written) -> Scored:
        cut, policy = written.truncated, self.lengths.overlong.policy
        if cut and policy == "ZeroReward":
            return Scored(0.0, dict.fromkeys(self._weights, 0.0))
        given = await asyncio.gather(*(one.source.give(question, written) for one in self.parts))
        parts: dict[str, float] = {}
        details: dict[str, float] = {}
        failures: list[Failed] = []
        for part, one in zip(self.parts, given, strict=True):
            if one.failure is not None:
                _check(part, question, one)
                failures.append(Failed(part.name, one.failure.cause, one.failure.detail))
            if one.reward is not None or part.on_error == "Zero":
                parts[part.name] = one.reward or 0.0
            details |= {f"{part.name}/{name}": value for name, value in one.metrics.items()}
        parts |= self.lengths.parts(len(written.token_ids))
        return Scored(
            reward=weighted(parts, self._weights),
            parts=parts,
            failures=tuple(failures),
            masked=cut and policy == "Mask",
            leaves_out=cut and policy == "Drop",
            details=details,
        )


def _check(part: Part, question: Question, given: Given) -> None:
    if part.on_error == "Fail" and given.failure is not None:
        where = "" if part.name == TASKSET else f", reward {part.name}"
        raise RewardFailedError(question.id, where, given.failure, part.remedy)
