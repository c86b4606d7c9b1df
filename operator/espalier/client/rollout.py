"""A rollout: the turns that a model sampled for one task, and what came of them."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.client.completion import Completion, sample_of
from espalier.client.errors import UntrainableError

Status = Literal["completed", "error", "cancelled"]

# Of one completion: a page of that many tokens is still read.
KEPT_TOKENS_MOST = 4096


@dataclass
class Rollout:
    """One attempt at one task.

    Attributes:
        task_id: of the task; may contain any character.
        rollout_idx: which attempt of the group.
        group_id: of the attempts at this task in this call; travels on the wire, so that the order
            of rollouts in a batch means nothing.
        prompt: the messages that the latest turn answers; for people.
        turns: the completions, in order; tokens of tools and users are in the next one's prompt and
            so are never trained on.
        reward: of the whole; None until graded.
        status: completed, error or cancelled.
        stop_reason: done, length, max_steps, timeout, or what the rollout says.
        error: why it failed, with the phase.
        metadata: for people; nothing depends on it.
        advantages: precomputed, by turn, one per output token; None where there is none.
        keep_tokens: keep the tokens of the last turn beside the checkpoint as well, with their
            log-probs, for the page of ``espalier rollouts show --html``.
    """

    task_id: str
    rollout_idx: int
    group_id: str
    prompt: list[dict[str, Any]] = field(default_factory=list)
    turns: list[Completion] = field(default_factory=list)
    reward: float | None = None
    status: Status = "completed"
    stop_reason: str = ""
    error: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    advantages: dict[int, Any] = field(default_factory=dict)
    keep_tokens: bool = False
    trace_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def name(self) -> str:
        """For messages."""
        return f"rollout {self.rollout_idx} of task {self.task_id}"

    @property
    def checkpoint(self) -> str:
        """The one checkpoint that sampled it; empty if there were several, or it is not known."""
        names = {turn.checkpoint for turn in self.turns}
        return names.pop() if len(names) == 1 else ""

    @property
    def is_truncated(self) -> bool:
        """Whether it ended for another reason than being done."""
        return self.stop_reason not in ("", "done")

    @property
    def hindrance(self) -> str:
        """Why it cannot be trained on; empty if it can."""
        if self.status != "completed":
            return self.error or self.status
        if self.reward is None:
            return "it has no reward"
        if not math.isfinite(self.reward):
            return f"its reward is {self.reward}"
        if not any(turn.token_ids for turn in self.turns):
            return "nothing was sampled"
        return ""

    def record(self, *, trained: bool) -> dict[str, Any]:
        """What is kept of it beside the checkpoint; ``trained``: a step learnt from it.

        What of the metadata JSON cannot say is written as Python shows it.
        """
        last = self.turns[-1] if self.turns else None
        paid = self.reward is not None and math.isfinite(self.reward)
        written = {
            "task": self.task_id,
            "group": self.group_id,
            "attempt": self.rollout_idx,
            "trace": self.trace_id,
            "prompt": self.prompt,
            "completion": last.shown if last is not None else None,
            "turns": len(self.turns),
            "tokens": sum(len(turn.token_ids) for turn in self.turns),
            "reward": self.reward if paid else None,
            "status": self.status,
            "stop_reason": self.stop_reason or None,
            "finish_reason": last.finish_reason if last is not None else None,
            "error": (self.hindrance or None) if not trained else None,
            "metadata": self.metadata or None,
            "trained": trained,
            **(tokens_of(last) if self.keep_tokens and last is not None else {}),
        }
        return {name: _plain(value) for name, value in written.items() if value is not None}

    def payload(self, advantages: Sequence[Sequence[float]] | None = None) -> TrajectoryPayload:
        """The rollout as the trainer takes it; ``advantages`` by turn and output token.

        Raises:
            UntrainableError: it failed, has no reward, or sampled nothing.
        """
        if self.hindrance or self.reward is None:
            raise UntrainableError(
                f"{self.name}: {self.hindrance}; leave out its whole group, or give it a reward"
            )
        samples = [
            sample_of(turn, advantages[index] if advantages is not None else None)
            for index, turn in enumerate(self.turns)
            if turn.token_ids
        ]
        return TrajectoryPayload(
            samples=samples,
            reward=self.reward,
            trace_id=self.trace_id,
            group_id=self.group_id,
        )


def tokens_of(turn: Completion) -> dict[str, Any]:
    """The first tokens of a turn; the trainer, which has the tokenizer, adds their texts."""
    return {
        "token_ids": list(turn.token_ids[:KEPT_TOKENS_MOST]),
        "logprobs": [round(value, 4) for value in turn.logprobs[:KEPT_TOKENS_MOST]],
    }


def _plain(value: Any) -> Any:
    """The value as JSON can say it."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
