"""The scorers themselves. They run in a worker's children only."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from itertools import product
from typing import Any, Protocol

from espalier.rewards import module
from espalier.rewards.extraction import Extraction, extract, matches
from espalier.rewards.text import TextReward
from espalier.runner.scorer_spec import Asked, Gym, Match, Mix, Module, Reference, Spec, Text
from espalier.runner.scoring import strict

_KEPT_TASKS = 128
_WARMING_TASKS = 3

# Datasets whose scorer passes the answer to ``eval`` or to sympy's ``parse_expr``, which evaluates.
# ``strict`` stands between, and a process that has read one such answer reads no other.
EVALUATING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)


class Scorer(Protocol):
    """Scores answers; may raise or return anything.

    Attributes:
        evaluates: whether an answer may run as code: then a process scores one answer and ends.
    """

    evaluates: bool

    def prepare(self, reference: Reference) -> None:
        """Makes what the task needs, in the worker, which never sees an answer."""
        ...

    def score(self, reference: Reference, completion: str) -> object:
        """The reward: a number of the range that was opened for."""
        ...


def open_scorer(wanted: Spec) -> Scorer:
    """The scorer of a reward; UserError as the tasks of a dataset would raise it."""
    match wanted:
        case Match():
            return MatchScorer(wanted.extraction)
        case Gym():
            return GymScorer(wanted)
        case Mix():
            return MixScorer(wanted)
        case Text():
            return TextScorer(wanted)
        case Module():
            return ModuleScorer(wanted)


class TextScorer:
    """Compares texts."""

    evaluates = False

    def __init__(self, wanted: Text) -> None:
        self._reward = TextReward(
            wanted.how, wanted.extraction, wanted.tolerance, wanted.pattern, wanted.group
        )

    def prepare(self, reference: Reference) -> None:
        """Nothing: the reference is all there is."""

    def score(self, reference: Reference, completion: str) -> float:
        """1 or 0."""
        return self._reward.score(str(reference), completion)


class ModuleScorer:
    """Calls a user's function. A process scores one completion: the function may run what it
    reads, and keeps nothing from one completion to the next.
    """

    evaluates = True

    def __init__(self, wanted: Module) -> None:
        self._function = wanted.function
        # Nothing of the module runs in the worker, which is less confined than its children.
        self._code = module.compiled(wanted.source)
        module.load_common()

    def prepare(self, reference: Reference) -> None:
        """Nothing: what was asked comes along."""

    def score(self, reference: Reference, completion: str) -> object:
        """What the function returns, whatever it is."""
        if not isinstance(reference, Asked):
            raise TypeError("a module is asked with what was asked")
        return module.call(self._code, self._function, reference.model_dump(), completion)


class MatchScorer:
    """1 for the expected answer, else 0."""

    evaluates = False

    def __init__(self, extraction: Extraction) -> None:
        self._extraction = extraction

    def prepare(self, reference: Reference) -> None:
        """Nothing: the reference is all there is."""

    def score(self, reference: Reference, completion: str) -> float:
        """Compares the extracted answer with ``reference``."""
        answer = extract(self._extraction, completion)
        return float(matches(self._extraction, answer, str(reference)))


class GymScorer:
    """The dataset's own score of the extracted answer; 0 where there is none."""

    def __init__(self, wanted: Gym) -> None:
        # Takes seconds to import, which a ConfigMap's tasks need not pay.
        from espalier.runner.gym_tasks import create  # noqa: PLC0415

        self.evaluates = wanted.dataset in EVALUATING
        self._extraction = wanted.extraction
        if self.evaluates:
            strict.install()
        self._dataset = create(wanted.dataset, wanted.config, wanted.seed, wanted.size)
        self._entry = lru_cache(_KEPT_TASKS)(self._dataset.__getitem__)
        if self.evaluates:
            self._warm_up(min(_WARMING_TASKS, wanted.size))

    def _warm_up(self, tasks: int) -> None:
        """Scores the dataset's own answers, so that children inherit what sympy loads and keeps."""
        entries = [self._entry(index) for index in range(tasks)]
        for entry, other in product(entries, entries):
            # Whatever is wrong with a scorer is said of the answers that it scores.
            with contextlib.suppress(Exception):
                self._dataset.score_answer(answer=str(other["answer"]), entry=entry)

    def prepare(self, reference: Reference) -> None:
        """Generates the task of that index."""
        self._entry(reference)

    def score(self, reference: Reference, completion: str) -> float:
        """Asks the dataset."""
        answer = extract(self._extraction, completion)
        # Several datasets give 0.01 for None.
        if answer is None:
            return 0.0
        entry: Any = self._entry(reference)
        return float(self._dataset.score_answer(answer=answer, entry=entry))


class MixScorer:
    """Each task's own dataset; where one of them evaluates, every answer has its own process."""

    def __init__(self, wanted: Mix) -> None:
        self._parts = [GymScorer(part) for part in wanted.parts]
        self.evaluates = any(part.evaluates for part in self._parts)

    def prepare(self, reference: Reference) -> None:
        """Generates the task in its dataset."""
        part, index = self._of(reference)
        part.prepare(index)

    def score(self, reference: Reference, completion: str) -> float:
        """Asks the dataset of the task."""
        part, index = self._of(reference)
        return part.score(index, completion)

    def _of(self, reference: Reference) -> tuple[GymScorer, int]:
        part, _, index = str(reference).partition(":")
        return self._parts[int(part)], int(index)
