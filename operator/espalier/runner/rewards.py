"""From scored groups to what the trainer gets, and to the metrics of a step. Pure.

The advantage is the trainer's: reward minus the mean of its group, which ``group_size`` inputs in
a row make (Dr. GRPO's form without the standard deviation, unless the run asks for it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, Literal

from espalier.api.wire import TrajectoryPayload, TrajectorySample
from espalier.client.batch import TOLERANCE
from espalier.client.completion import Completion
from espalier.runner.tasks import Score, Task

AdvantageSource = Literal["Estimated", "Precomputed"]


@dataclass(frozen=True)
class Group:
    """The completions of one task and their scores, in the same order."""

    task: Task
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """One reward a completion."""
        return tuple(score.reward for score in self.scores)

    @property
    def zero_variance(self) -> bool:
        """True when all rewards are equal."""
        return max(self.rewards) - min(self.rewards) <= TOLERANCE

    def can_teach(self, source: AdvantageSource) -> bool:
        """Whether any advantage of the group differs from 0; a precomputed one is the reward."""
        if source == "Precomputed":
            return any(abs(reward) > TOLERANCE for reward in self.rewards)
        return not self.zero_variance


def kept(
    groups: Sequence[Group], zero_variance: Literal["Keep", "Drop"], source: AdvantageSource
) -> list[Group]:
    """The groups that are trained on; a group stays whole or goes whole.

    None where none can teach: the trainer refuses a step whose gradient is zero.
    """
    teaching = [group for group in groups if group.can_teach(source)]
    return list(groups) if teaching and zero_variance == "Keep" else teaching


def payloads(groups: Iterable[Group], source: AdvantageSource) -> list[TrajectoryPayload]:
    """One input a completion, groups in a row."""
    return [
        TrajectoryPayload(
            samples=[
                TrajectorySample(
                    prompt_token_ids=list(completion.prompt_token_ids),
                    output_token_ids=list(completion.token_ids),
                    output_logprobs=list(completion.logprobs),
                )
            ],
            reward=score.reward,
            advantage=score.reward if source == "Precomputed" else None,
        )
        for group in groups
        for completion, score in zip(group.completions, group.scores, strict=True)
    ]


def metrics(groups: Sequence[Group], dropped: int) -> dict[str, float]:
    """The runner's metrics of a step, over everything sampled, dropped groups included.

    ``reward/std`` is the population's; fractions are of groups and of completions.
    """
    rewards = [reward for group in groups for reward in group.rewards]
    completions = [completion for group in groups for completion in group.completions]
    failed = sum(score.failed for group in groups for score in group.scores)
    return {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/scorer_errors": float(failed),
        "group/zero_variance_fraction": fmean(group.zero_variance for group in groups),
        "group/dropped": float(dropped),
        "completion/tokens_mean": fmean(len(c.token_ids) for c in completions),
        "completion/truncated_fraction": fmean(c.truncated for c in completions),
    }


def records(groups: Iterable[Group], trained: Sequence[Group]) -> list[dict[str, Any]]:
    """A record per completion, for people to read beside the checkpoint."""
    ids = {id(group) for group in trained}
    return [
        {
            "task": group.task.id,
            "prompt": [message.wire() for message in group.task.messages],
            "completion": completion.text,
            "reward": score.reward,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "trained": id(group) in ids,
        }
        for group in groups
        for completion, score in zip(group.completions, group.scores, strict=True)
    ]


def uninformative(groups: Sequence[Group], rounds: int) -> tuple[str, str]:
    """Detail and remedy for rounds of groups that all had equal rewards."""
    seen = metrics(groups, len(groups))
    cut, mean = seen["completion/truncated_fraction"], seen["reward/mean"]
    detail = (
        f"in {rounds} rounds every group of completions had equal rewards "
        f"(mean reward {mean:.3g}, {cut:.0%} of completions cut at sampling.maxTokens)"
    )
    return detail, _remedy(cut, mean, seen["reward/scorer_errors"])


def _remedy(cut: float, mean: float, errors: float) -> str:
    if mean > 0.99:
        return "The model solves every task: choose harder ones in taskset"
    if cut > 0.5:
        return "Completions are cut before the answer: raise sampling.maxTokens"
    if errors:
        return "The scorer raises on what the model writes: check taskset.answerExtraction"
    return (
        "The model solves none: choose easier tasks, say in taskset.promptTemplate how to answer, "
        "check taskset.answerExtraction, or raise groupSize"
    )
