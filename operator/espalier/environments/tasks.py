"""Tasks, and the seeds that follow from their names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from espalier.api.run.taskset import Taskset


@dataclass(frozen=True)
class Message:
    """One message of a chat; ``role`` is system, user or assistant."""

    role: str
    content: str

    def wire(self) -> dict[str, str]:
        """As the chat route takes it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Task:
    """One task. ``id`` is ``<source>/<name>/<index>``, the same after a restart.

    ``messages`` are those that a rollout begins with, as far as they are known before it does;
    ``data`` is what else an environment knows of the task, as JSON can say it.
    """

    id: str
    messages: tuple[Message, ...]
    data: dict[str, Any] = field(default_factory=dict, compare=False)


def task_seed(seed: int, task: str) -> int:
    """A seed (63 bits) of what all rollouts of a task have in common."""
    return _seed(seed, task)


def rollout_seed(seed: int, task: str, rollout: int) -> int:
    """A seed (63 bits) of one rollout: of the taskset's seed, the task's id and which rollout."""
    return _seed(seed, task, rollout)


def request_seed(seed: int, *where: int | str) -> int:
    """A seed (47 bits) of one request for completions of a run: room to count up for several."""
    return _seed(seed, "request", *where) >> 16


def _seed(*parts: int | str) -> int:
    # As JSON, so that no two lists of parts are the same text.
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def system(spec: Taskset) -> tuple[Message, ...]:
    """The system prompt as messages: one or none."""
    return (Message("system", spec.system_prompt),) if spec.system_prompt else ()


def within(index: int, size: int) -> int:
    """The index; sources such as reasoning-gym would take any."""
    if not 0 <= index < size:
        raise IndexError(f"task {index} is outside of the taskset's {size} tasks")
    return index
