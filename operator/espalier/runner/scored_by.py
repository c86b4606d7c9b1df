"""What of a run decides how it is scored: when that is edited, tasks and rewards open anew."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.api.run.rewards import Aggregation, Reward
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.rewards.lengths import LengthRules


@dataclass(frozen=True)
class ScoredBy:
    """The parts of a run's spec; equal ones score alike."""

    taskset: Taskset | None
    rewards: tuple[Reward, ...] | None
    aggregation: Aggregation
    lengths: LengthRules

    @classmethod
    def of(cls, spec: TrainingRunSpec) -> ScoredBy:
        """Of a run."""
        lengths = LengthRules(spec.sampling.max_tokens, spec.overlong, spec.length_penalty)
        rewards = tuple(spec.rewards) if spec.rewards is not None else None
        return cls(spec.taskset, rewards, spec.reward_aggregation, lengths)
