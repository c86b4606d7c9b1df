"""From scored groups to what the trainer gets, and to the metrics of a step. Pure.

The advantage is the trainer's: reward minus the mean of its group (Dr. GRPO's form without the
standard deviation, unless the run asks for it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from espalier.api.metric_names import STEP_REWARD, of_rewards, of_step
from espalier.api.run.advantage import Estimator
from espalier.api.run.group_filter import GroupFilter
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.client.completion import Completion, sample_of
from espalier.loop.sample_metrics import TOLERANCE, of_groups, of_rollouts
from espalier.rewards.failure import Cause
from espalier.rewards.figures import TASKSET, by_reward, counted
from espalier.rewards.scored import Scored
from espalier.runner.task_protocol import Task

_METRIC: dict[Cause, str] = {
    "Raised": "raised",
    "Timeout": "timeout",
    "Memory": "memory",
    "Died": "died",
    "NotFinite": "not_finite",
    "OutOfRange": "out_of_range",
    "Malformed": "malformed",
    "Unreachable": "unreachable",
}

ERRORS = "rollout/scorer_errors"
_SCORER = (
    "The scorer fails on what the model writes, or is not reached: the runner's log says why. Let "
    "onError, of the taskset or of each of rewards, say what such answers are worth, say in "
    "taskset.promptTemplate how to answer, or give slow scorers more seconds"
)
# Of rewards with weights nobody can say which sum is the best.
_DECLARED = (
    "Read in the log and in rollout/reward/<name>/mean which of rewards is always the same or "
    "fails, choose tasks nearer to what the model can do, or raise groupSize"
)


@dataclass(frozen=True)
class Group:
    """The completions of one task and their scores, in the same order.

    ``checkpoint`` is the name of the one that was sampled; empty for the base. Of rollouts over
    several turns ``completions`` are the last ones, ``turns`` all of each; empty where every
    rollout is its one completion. Rewards closer than ``tolerance`` are equal. ``retries`` counts
    the tries after each rollout's first. With ``least`` the group is trained on without rollouts
    that have no reward, if as many are left.
    """

    task: Task
    completions: tuple[Completion, ...]
    scores: tuple[Scored, ...]
    checkpoint: str = ""
    turns: tuple[tuple[Completion, ...], ...] = ()
    tolerance: float = TOLERANCE
    retries: int = 0
    least: int | None = None

    @property
    def rollouts(self) -> tuple[tuple[Completion, ...], ...]:
        """The turns of each rollout."""
        return self.turns or tuple((completion,) for completion in self.completions)

    @property
    def written(self) -> list[Completion]:
        """Everything that the model wrote, turn by turn."""
        return [turn for turns in self.rollouts for turn in turns]

    @property
    def rewards(self) -> tuple[float, ...]:
        """The rewards of the completions that have one."""
        return tuple(score.reward for score in self.scores if score.reward is not None)

    @property
    def scored(self) -> bool:
        """Whether every completion has a reward."""
        return len(self.rewards) == len(self.scores)

    @property
    def whole(self) -> bool:
        """Whether what has a reward may be trained on: all of it, or as much as is enough."""
        return self.scored or (self.least is not None and len(self.rewards) >= self.least)

    @property
    def zero_variance(self) -> bool:
        """True when there are rewards and all are equal, so that no advantage differs from 0.

        Where each reward is normalized on its own, equal sums may still have advantages.
        """
        given = [score.advantage for score in self.scores if score.advantage is not None]
        if given:
            return max(map(abs, given)) <= self.tolerance
        return bool(self.rewards) and max(self.rewards) - min(self.rewards) <= self.tolerance

    @property
    def left_out(self) -> bool:
        """Whether a completion was cut, and the run drops such groups (``overlong: Drop``)."""
        return any(score.leaves_out for score in self.scores)

    @property
    def can_teach(self) -> bool:
        """Whether an advantage of a completion that is trained on differs from 0.

        Never where too many rewards are missing: the mean of the others is no baseline.
        """
        return self.teaches("GroupMean")

    def teaches(self, estimator: Estimator) -> bool:
        """As ``can_teach``, where the advantage is of this estimator: with None it is the reward,
        which one completion alone has too."""
        if not self.whole or (self.zero_variance and estimator != "None"):
            return False
        mean = 0.0 if estimator == "None" else fmean(self.rewards)
        given = (score for score in self.scores if score.reward is not None)
        return any(
            abs(reward - mean if score.advantage is None else score.advantage) > self.tolerance / 2
            for score, reward in zip(given, self.rewards, strict=True)
            if not score.masked
        )


def kept(
    groups: Sequence[Group], rules: GroupFilter, estimator: Estimator = "GroupMean"
) -> list[Group]:
    """The groups that are trained on; a group stays whole or goes whole.

    None where none can teach: the trainer refuses a step whose gradient is zero.
    """
    whole = [group for group in groups if not group.left_out]
    teaching = [group for group in whole if group.teaches(estimator)]
    if teaching and rules.zero_variance == "Keep":
        return [group for group in whole if group.whole]
    return teaching


def payloads(group: Group, name: str) -> list[TrajectoryPayload]:
    """One input for each rollout that has a reward, with the group's ``name``."""
    return [
        TrajectoryPayload(
            samples=[sample_of(turn, masked=score.masked) for turn in turns],
            reward=score.reward,
            group_id=name,
            advantage=score.advantage,
        )
        for turns, score in zip(group.rollouts, group.scores, strict=True)
        if score.reward is not None
    ]


def common_size(inputs: Sequence[TrajectoryPayload]) -> int | None:
    """How many inputs each named group has; None where that differs."""
    sizes = set(Counter(payload.group_id for payload in inputs).values())
    return sizes.pop() if len(sizes) == 1 else None


def metrics(groups: Sequence[Group], dropped: int, too_long: int = 0) -> dict[str, float]:
    """The runner's metrics of a step, over everything sampled, dropped groups included.

    Standard deviations are the population's; fractions are of groups and of completions. Where no
    completion has a reward there is no mean, and only causes that occurred are named. ``too_long``
    counts the tasks that could not be asked.
    """
    asked = {"group/prompt_too_long": float(too_long)} if too_long else {}
    if not groups:
        return asked
    given = [reward for group in groups for reward in group.rewards]
    rewards = {of_step(name): value for name, value in of_rewards(given).items()} if given else {}
    scored = sum(len(group.rewards) for group in groups)
    failed = counted(score for group in groups for score in group.scores)
    retries = sum(group.retries for group in groups)
    each = by_reward([score for group in groups for score in group.scores])
    causes = {f"{ERRORS}_{_METRIC[cause]}": float(n) for cause, n in sorted(failed.items())}
    return (
        asked
        | ({"rollout/retries": float(retries)} if retries else {})
        | rewards
        | {of_step(name): value for name, value in each.items()}
        | causes
        | of_groups([group.rewards for group in groups if group.scored])
        | of_rollouts([turns for group in groups for turns in group.rollouts])
        | {
            ERRORS: float(failed.total()),
            "group/zero_variance_fraction": fmean(group.zero_variance for group in groups),
            "group/dropped": float(dropped),
            "completion/unscored_fraction": 1 - scored / sum(len(g.scores) for g in groups),
        }
    )


def measured(groups: Sequence[Group]) -> dict[str, float]:
    """The rewards of what was sampled, as figures of the checkpoint that sampled it."""
    rewards = [reward for group in groups for reward in group.rewards]
    if not rewards:
        return {}
    each = by_reward([score for group in groups for score in group.scores])
    # Of each reward its mean alone: a checkpoint has no room for more (MEASURED_MOST).
    return of_rewards(rewards) | {n: value for n, value in each.items() if n.endswith("/mean")}


def records(groups: Iterable[Group], trained: Sequence[Group]) -> list[dict[str, Any]]:
    """A record per completion, for people to read beside the checkpoint.

    ``rewards`` are its parts before their weights. ``reward`` is null where there is none;
    ``scorer_errors`` then say why.
    """
    ids = {id(group) for group in trained}
    return [
        {
            "task": group.task.id,
            "prompt": [message.wire() for message in group.task.messages],
            "completion": completion.shown,
            "reward": score.reward,
            "rewards": dict(score.parts),
            "tokens": sum(len(turn.token_ids) for turn in turns),
            "finish_reason": completion.finish_reason,
            "trained": id(group) in ids and score.reward is not None,
            **({"turns": len(turns)} if group.turns else {}),
            **({"scorer_errors": [one.wire() for one in score.failures]} if score.failures else {}),
            **({"reward_metrics": dict(score.details)} if score.details else {}),
        }
        for group in groups
        for completion, turns, score in zip(
            group.completions, group.rollouts, group.scores, strict=True
        )
    ]


def uninformative(groups: Sequence[Group], rounds: int) -> tuple[str, str]:
    """Detail and remedy for rounds in which no group was trained on."""
    if able := sum(group.can_teach for group in groups):
        return (
            f"in {rounds} rounds every group that could teach, {able} of {len(groups)}, had a "
            "completion cut at sampling.maxTokens, and overlong.policy is Drop",
            "Raise sampling.maxTokens, or set another overlong.policy",
        )
    if silent := sum(group.whole and not group.zero_variance for group in groups):
        return (
            f"in {rounds} rounds every group whose rewards differ, {silent} of {len(groups)}, "
            "differs in completions alone that were cut at sampling.maxTokens, and overlong.policy "
            "is Mask",
            "Raise sampling.maxTokens, or set another overlong.policy",
        )
    seen = metrics(groups, len(groups))
    cut, mean = seen.get("completion/truncated_fraction", 0.0), seen.get(STEP_REWARD)
    lacking = sum(not group.whole for group in groups)
    shown = "no reward at all" if mean is None else f"mean reward {mean:.3g}"
    errors = f", {lacking} of {len(groups)} groups dropped for scorer errors" if lacking else ""
    detail = (
        f"in {rounds} rounds every group of completions had equal rewards or none "
        f"({shown}, {cut:.0%} of completions cut at sampling.maxTokens{errors})"
    )
    if 2 * lacking > len(groups):
        return detail, _SCORER
    scores = [score for group in groups for score in group.scores]
    if any(score.parts.keys() - {TASKSET} for score in scores) and cut <= 0.5:
        return detail, _DECLARED
    return detail, _remedy(cut, mean, seen[ERRORS])


def _remedy(cut: float, mean: float | None, errors: float) -> str:
    if mean is not None and mean > 0.99:
        return "The model solves every task: choose harder ones in taskset"
    if cut > 0.5:
        return (
            "Completions are cut before the answer: raise sampling.maxTokens, or set "
            "sampling.stopTokenIds where the model's condition SourceResolved says so"
        )
    if errors:
        return _SCORER
    return (
        "The model solves none: choose easier tasks, say in taskset.promptTemplate how to answer, "
        "check taskset.answerExtraction, or raise groupSize"
    )
