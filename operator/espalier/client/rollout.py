"""A rollout: the turns that a model sampled for one task, and what came of them."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from espalier.api.wire import TrajectoryPayload
from espalier.client.completion import Completion, sample_of
from espalier.client.errors import UntrainableError

Status = Literal["completed", "error", "cancelled"]


@dataclass
class Rollout:
    """One attempt at one task.

    Attributes:
        task_id: of the task; may contain any character.
        rollout_idx: which attempt of the group.
        group_id: of the attempts at this task in this call; travels on the wire, so that the order
            of rollouts in a batch means nothing.
        turns: the completions, in order; tokens of tools and users are in the next one's prompt and
            so are never trained on.
        reward: of the whole; None until graded.
        status: completed, error or cancelled.
        stop_reason: done, length, max_steps, timeout, or what the rollout says.
        error: why it failed, with the phase.
        metadata: for people; nothing depends on it.
        advantages: precomputed, by turn, one per output token; None where there is none.
    """

    task_id: str
    rollout_idx: int
    group_id: str
    turns: list[Completion] = field(default_factory=list)
    reward: float | None = None
    status: Status = "completed"
    stop_reason: str = ""
    error: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    advantages: dict[int, Any] = field(default_factory=dict)
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

    def payload(
        self, advantages: Sequence[Sequence[float]] | None = None, *, grouped: bool = True
    ) -> TrajectoryPayload:
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
            group_id=self.group_id if grouped else None,
        )
