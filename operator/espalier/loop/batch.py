"""Groups of rollouts: which can be trained on, what was left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from espalier.api.metric_names import of_rewards, of_step
from espalier.client.kept_rollouts import Trajectories
from espalier.client.rollout import Rollout
from espalier.core.names import BASE
from espalier.loop.precomputed import Source, trajectories
from espalier.loop.sample_metrics import TOLERANCE, of_groups, of_rollouts, zero_variance


@dataclass
class Batch:
    """The groups of one ``Job.run``, as many as there were tasks, in their order."""

    groups: list[list[Rollout]]
    warnings: list[str] = field(default_factory=list)

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts, group after group."""
        return [rollout for group in self.groups for rollout in group]

    @property
    def whole(self) -> list[list[Rollout]]:
        """The groups in which every rollout can be trained on."""
        return [group for group in self.groups if not any(r.hindrance for r in group)]

    @property
    def informative(self) -> list[list[Rollout]]:
        """The whole groups whose rewards differ: only they have a gradient."""
        return [group for group in self.whole if _spread(group) > TOLERANCE]

    def trajectories(
        self, *, advantages: Source = "Estimated", keep_constant: bool = False
    ) -> Trajectories:
        """What to train on, with group ids. A group stays whole or goes whole.

        ``keep_constant`` keeps groups of equal rewards; precomputed advantages always do.
        """
        constant = keep_constant or advantages == "Precomputed"
        chosen = self.whole if constant else self.informative
        return Trajectories(trajectories(chosen, advantages), self.rollouts)

    def metrics(self) -> dict[str, float]:
        """Metrics of a step that is taken with the batch: rewards of all graded rollouts, and what
        was left out and why."""
        rollouts = self.rollouts
        rewards = [r.reward for r in rollouts if not r.hindrance and r.reward is not None]
        seen = {
            "rollout/failed": float(sum(r.status != "completed" for r in rollouts)),
            "rollout/timed_out": float(sum(r.stop_reason == "timeout" for r in rollouts)),
            "group/excluded": float(len(self.groups) - len(self.whole)),
            "group/dropped": float(len(self.whole) - len(self.informative)),
        }
        if rewards:
            seen |= {of_step(name): value for name, value in of_rewards(rewards).items()}
        graded = [[r.reward for r in group if r.reward is not None] for group in self.whole]
        written = of_rollouts([rollout.turns for rollout in rollouts])
        return seen | zero_variance(graded) | of_groups(graded) | written

    def measured(self) -> dict[str, dict[str, float]]:
        """What the rewards of all graded rollouts say of each checkpoint that sampled them."""
        rewards: dict[str, list[float]] = {}
        for rollout in self.rollouts:
            if rollout.checkpoint not in ("", BASE) and not rollout.hindrance:
                rewards.setdefault(rollout.checkpoint, []).append(rollout.reward or 0.0)
        return {name: of_rewards(seen) for name, seen in rewards.items()}


def _spread(group: Sequence[Rollout]) -> float:
    rewards = [rollout.reward for rollout in group if rollout.reward is not None]
    return max(rewards) - min(rewards)
