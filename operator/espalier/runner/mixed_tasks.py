"""A weighted mix of reasoning-gym's datasets: exact shares, in an order drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from espalier.api.run.answered_sources import MixedDataset
from espalier.api.run.taskset import Taskset
from espalier.environments.errors import invalid
from espalier.environments.tasks import Task, within
from espalier.runner.gym_tasks import answer_of, create, scorer_of
from espalier.runner.scorer_spec import Mix
from espalier.runner.task_protocol import ask

FIELD = "taskset.reasoningGym.datasets"


class MixedTasks:
    """Tasks of several datasets, each generated with the taskset's seed.

    Raises:
        UserError: ``TasksetInvalid``, naming the field.
    """

    def __init__(self, spec: Taskset, parts: Sequence[MixedDataset]) -> None:
        _check(spec, parts)
        self._spec = spec
        self._parts = parts
        self._sizes = shares([part.weight_percent for part in parts], spec.size)
        self._datasets = [
            create(part.name, part.config or {}, spec.seed, size, _fields(index))
            for index, (part, size) in enumerate(zip(parts, self._sizes, strict=True))
        ]
        self._places = order(self._sizes, spec.seed)

    @property
    def size(self) -> int:
        """Number of tasks, of all datasets."""
        return self._spec.size

    def task(self, index: int) -> Task:
        """The task at a place of the mix; its id has its index in its own dataset."""
        part, own = self._places[within(index, self.size)]
        messages = ask(self._spec, str(self._datasets[part][own]["question"]))
        return Task(f"reasoning-gym/{self._parts[part].name}/{own}", messages)

    @property
    def scorer(self) -> Mix:
        """Each dataset's own score."""
        return Mix(
            parts=tuple(
                scorer_of(self._spec, part.name, part.config or {}, size)
                for part, size in zip(self._parts, self._sizes, strict=True)
            )
        )

    def reference(self, index: int) -> str:
        """The part and the index in it."""
        part, own = self._places[within(index, self.size)]
        return f"{part}:{own}"

    def answer(self, index: int) -> str | None:
        """The answer of the task's dataset; a few datasets have none."""
        part, own = self._places[within(index, self.size)]
        return answer_of(self._datasets[part][own])


def shares(weights: Sequence[int], size: int) -> list[int]:
    """How many of ``size`` tasks each weight (percent) gets: the largest remainders round up."""
    exact = [weight * size for weight in weights]
    whole = [share // 100 for share in exact]
    left = size - sum(whole)
    by_remainder = sorted(range(len(weights)), key=lambda part: (-(exact[part] % 100), part))
    for part in by_remainder[:left]:
        whole[part] += 1
    return whole


def order(sizes: Sequence[int], seed: int) -> list[tuple[int, int]]:
    """For each place of the mix the part and the index in it, which counts up within a part."""
    drawn = [part for part, size in enumerate(sizes) for _ in range(size)]
    random.Random(seed).shuffle(drawn)
    seen = [0] * len(sizes)
    places = []
    for part in drawn:
        places.append((part, seen[part]))
        seen[part] += 1
    return places


def _check(spec: Taskset, parts: Sequence[MixedDataset]) -> None:
    total = sum(part.weight_percent for part in parts)
    if total != 100:
        raise invalid(f"{FIELD}: weightPercent sums to {total}", "Make the weights sum to 100")
    names = [part.name for part in parts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise invalid(
            f"{FIELD}: {', '.join(sorted(twice))} is named twice",
            "Name each dataset once: its tasks are known by its name",
        )
    for part, size in zip(parts, shares([p.weight_percent for p in parts], spec.size), strict=True):
        if not size:
            raise invalid(
                f"{FIELD}: {part.weight_percent} % of size {spec.size} is no task of {part.name}",
                "Raise taskset.size or the weight",
            )


def _fields(index: int) -> tuple[str, str]:
    return f"{FIELD}[{index}].name", f"{FIELD}[{index}].config"
