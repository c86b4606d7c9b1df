"""Sums up to a most as a taskset of verifiers 0.4: the right number counts, and so does brevity."""

from __future__ import annotations

import re
from collections.abc import Iterator

import verifiers.v1 as vf


class Data(vf.TaskData):
    """One sum."""

    answer: str


class Config(vf.TasksetConfig):
    """What ``config`` of the run may set."""

    most: int = 20


class Sum(vf.Task[Data]):
    """The last number of the reply is its answer."""

    @vf.reward(weight=0.8)
    async def right(self, task: Data, trace: vf.Trace) -> float:
        """Whether the last number is the sum."""
        numbers = re.findall(r"\d+", trace.last_reply)
        return float(numbers[-1:] == [task.answer])

    @vf.reward(weight=0.2)
    async def brief(self, trace: vf.Trace) -> float:
        """1 for a number alone, less with every word around it."""
        return 1 / max(1, len(trace.last_reply.split()))

    @vf.metric
    async def characters(self, trace: vf.Trace) -> float:
        """Length of the reply."""
        return float(len(trace.last_reply))


class Sums(vf.Taskset[Sum, Config]):
    """Every sum of two numbers up to ``most``."""

    def load(self) -> Iterator[Sum]:
        """In order; the run's seed shuffles them."""
        for a in range(self.config.most + 1):
            for b in range(self.config.most + 1):
                prompt = f"What is {a} + {b}? Answer with just the number."
                yield Sum(Data(prompt=prompt, answer=str(a + b)), self.config.task)


__all__ = ["Sums"]
