"""What a taskset is: numbered tasks, and what scores a completion of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from espalier.api.run.taskset import Taskset
from espalier.environments.tasks import Message, Task, system, within
from espalier.rewards.failure import Failure
from espalier.runner.scorer_spec import Scoring

__all__ = [
    "TASKS_DIRECTORY",
    "Message",
    "Score",
    "Task",
    "Tasks",
    "ask",
    "system",
    "within",
]

TASKS_DIRECTORY = Path(os.environ.get("ESPALIER_TASKS_DIRECTORY", "/etc/espalier/tasks"))


@dataclass(frozen=True)
class Score:
    """A reward of the worker, or why there is none."""

    reward: float | None
    failure: Failure | None = None


class Tasks(Protocol):
    """Tasks of one source. The index runs from 0 to size - 1."""

    @property
    def size(self) -> int:
        """Number of tasks."""
        ...

    def task(self, index: int) -> Task:
        """The task; IndexError outside of the range."""
        ...

    @property
    def scorer(self) -> Scoring:
        """What scores the answers."""
        ...

    def reference(self, index: int) -> str | int:
        """What the scorer needs to know of a task."""
        ...

    def answer(self, index: int) -> str | None:
        """The expected answer as text; None where nobody knows one."""
        ...


def ask(spec: Taskset, question: str) -> tuple[Message, ...]:
    """The chat for a question: system prompt, then the question in its template."""
    template = spec.prompt_template
    # Not str.format: questions and templates hold braces of their own.
    content = template.replace("{question}", question) if template else question
    return (*system(spec), Message("user", content))
