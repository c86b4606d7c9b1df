"""What is scored, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from espalier.rewards.failure import Cause, Failure


class Message(Protocol):
    """One message of a chat."""

    @property
    def role(self) -> str:
        """Of system, user or assistant."""
        ...

    @property
    def content(self) -> str:
        """The text."""
        ...


class Task(Protocol):
    """A task, as far as rewards read it."""

    @property
    def id(self) -> str:
        """Names it in logs."""
        ...

    @property
    def messages(self) -> Sequence[Message]:
        """What was asked."""
        ...


class Written(Protocol):
    """What a model wrote for a task."""

    @property
    def text(self) -> str:
        """Without special tokens."""
        ...

    @property
    def token_ids(self) -> Sequence[int]:
        """The sampled tokens, (T,)."""
        ...

    @property
    def truncated(self) -> bool:
        """Whether it was cut at the token limit."""
        ...


@dataclass(frozen=True)
class Question:
    """A task by its number, with the answer that is expected; None where nobody knows one."""

    index: int
    id: str
    messages: tuple[tuple[str, str], ...]
    answer: str | None

    @classmethod
    def of(cls, index: int, task: Task, answer: str | None) -> Question:
        """Of a task; each message is its role and its content."""
        return cls(index, task.id, tuple((m.role, m.content) for m in task.messages), answer)

    def wire(self) -> list[dict[str, str]]:
        """The messages as JSON."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True)
class Given:
    """What one reward gave: a number, or why not. ``metrics`` are its own figures, by name."""

    reward: float | None
    failure: Failure | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, judged: float | Failure, metrics: Mapping[str, float] | None = None) -> Given:
        """Of a number that was judged."""
        if isinstance(judged, Failure):
            return cls(None, judged)
        return cls(judged, None, metrics or {})


@dataclass(frozen=True)
class Failed:
    """One reward that could not be had; ``reward`` is its name."""

    reward: str
    cause: Cause
    detail: str

    def wire(self) -> dict[str, str]:
        """As JSON."""
        return {"reward": self.reward, "cause": self.cause, "detail": self.detail}


@dataclass(frozen=True)
class Scored:
    """One completion.

    Attributes:
        reward: the weighted sum of the parts; None where one of them is missing.
        parts: by the reward's name, what it gave, before its weight; ``overlong`` and ``length``
            are of the run itself.
        failures: the rewards that could not be had; under onError Zero their part is 0.
        advantage: of the completion within its group, where the rewards give it
            (``NormalizeThenSum``); None where the trainer estimates it from ``reward``.
        masked: its tokens are not trained on, though its reward counts in its group.
        leaves_out: its group is not trained on.
        details: figures of its rewards, as ``<reward>/<figure>``.
    """

    reward: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Failed, ...] = ()
    advantage: float | None = None
    masked: bool = False
    leaves_out: bool = False
    details: Mapping[str, float] = field(default_factory=dict)
