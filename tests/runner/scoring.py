"""Scores in this process, without a worker: for answers that the tests themselves wrote."""

from __future__ import annotations

from espalier.runner.scoring.scorers import open_scorer
from espalier.runner.task_protocol import Tasks


def reward(tasks: Tasks, index: int, completion: str) -> float:
    """What the scorer of the taskset gives."""
    given = open_scorer(tasks.scorer).score(tasks.reference(index), completion)
    assert isinstance(given, float)
    return given
