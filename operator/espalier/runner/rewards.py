"""From scored groups to what the trainer gets, and to the metrics of a step. Pure.

The advantage is the trainer's: reward minus the mean of its group, which ``group_size`` inputs in
a row make (Dr. GRPO's form without the standard deviation, unless the run asks for it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from espalier.api.metric_names import STEP_REWARD, of_rewards, of_step
from espalier.api.run.group_filter import GroupFilter
from espalier.api.wire import TrajectoryPayload
from espalier.client.completion import Completion, sample_of
from espalier.loop.batch import TOLERANCE
from espalier.runner.scorer_spec import Cause
from espalier.runner.scoring.on_error import REMEDY, counted
from espalier.runner.task_protocol import Score, Task

_METRIC: dict[Cause, str] = {
    "Raised": "raised",
    "Timeout": "timeout",
    "Memory": "memory",
    "Died": "died",
    "NotFinite": "not_finite",
    "OutOfRange": "out_of_range",
    "Malformed": "malformed",
}

ERRORS = "rollout/scorer_errors"
_SCORER = f"The scorer fails on what the model writes. {REMEDY}"


@dataclass(frozen=True)
class Group:
    """The completions of one task and their scores, in the same order.

    Of rollouts over several turns ``completions`` are the last ones, ``turns`` all of each; empty
    where every rollout is its one completion.
    """

    task: Task
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...]
    turns: tuple[tuple[Completion, ...], ...] = ()

    @property
    def rollouts(self) -> tuple[tuple[Completion, ...], ...]:
        """The turns of each rollout."""
        return self.turns or tuple((completion,) for completion in self.completions)

    @property
    def rewards(self) -> tuple[float, ...]:
        """The rewards of the completions that have one."""
        return tuple(score.reward for score in self.scores if score.reward is not None)

    @property
    def scored(self) -> bool:
        """Whether every completion has a reward."""
        return len(self.rewards) == len(self.scores)

    @property
    def zero_variance(self) -> bool:
        """True when there are rewards and all are equal."""
        return bool(self.rewards) and max(self.rewards) - min(self.rewards) <= TOLERANCE

    @property
    def truncated(self) -> bool:
        """Whether any completion was cut before its end."""
        return any(turn.truncated for turns in self.rollouts for turn in turns)

    @property
    def can_teach(self) -> bool:
        """Whether any advantage of the group differs from 0.

        Never where a reward is missing: the mean of the others is no baseline.
        """
        return self.scored and not self.zero_variance


def kept(groups: Sequence[Group], rules: GroupFilter) -> list[Group]:
    """The groups that are trained on; a group stays whole or goes whole.

    None where none can teach: the trainer refuses a step whose gradient is zero.
    """
    whole = [group for group in groups if rules.truncated == "Keep" or not group.truncated]
    teaching = [group for group in whole if group.can_teach]
    if teaching and rules.zero_variance == "Keep":
        return [group for group in whole if group.scored]
    return teaching


def payloads(groups: Iterable[Group]) -> list[TrajectoryPayload]:
    """One input a rollout, groups in a row."""
    return [
        TrajectoryPayload(
            samples=[sample_of(turn) for turn in turns],
            reward=_given(score),
        )
        for group in groups
        for turns, score in zip(group.rollouts, group.scores, strict=True)
    ]


def _given(score: Score) -> float:
    if score.reward is None:
        raise ValueError("a completion without a reward is never trained on")
    return score.reward


def metrics(groups: Sequence[Group], dropped: int, too_long: int = 0) -> dict[str, float]:
    """The runner's metrics of a step, over everything sampled, dropped groups included.

    Standard deviations are the population's; fractions are of groups and of completions. Where no
    completion has a reward there is no mean, and only causes that occurred are named. ``too_long``
    counts the tasks that could not be asked.
    """
    asked = {"group/prompt_too_long": float(too_long)} if too_long else {}
    if not groups:
        return asked
    rewards = {of_step(name): value for name, value in measured(groups).items()}
    completions = [turn for group in groups for turns in group.rollouts for turn in turns]
    failed = counted(score for group in groups for score in group.scores)
    causes = {f"{ERRORS}_{_METRIC[cause]}": float(n) for cause, n in sorted(failed.items())}
    return (
        asked
        | rewards
        | causes
        | {
            ERRORS: float(failed.total()),
            "group/zero_variance_fraction": fmean(group.zero_variance for group in groups),
            "group/dropped": float(dropped),
        }
        | _of_completions(completions)
    )


def _of_completions(completions: Sequence[Completion]) -> dict[str, float]:
    """None where every rollout ended before its first turn."""
    if not completions:
        return {}
    return {
        "completion/tokens_mean": fmean(len(c.token_ids) for c in completions),
        "completion/truncated_fraction": fmean(c.truncated for c in completions),
    }


def measured(groups: Sequence[Group]) -> dict[str, float]:
    """The rewards of what was sampled, as figures of the checkpoint that sampled it."""
    rewards = [reward for group in groups for reward in group.rewards]
    return of_rewards(rewards) if rewards else {}


def records(groups: Iterable[Group], trained: Sequence[Group]) -> list[dict[str, Any]]:
    """A record per completion, for people to read beside the checkpoint.

    ``reward`` is null where there is none; ``scorer_error`` then says why.
    """
    ids = {id(group) for group in trained}
    return [
        {
            "task": group.task.id,
            "prompt": [message.wire() for message in group.task.messages],
            "completion": completion.text,
            "reward": score.reward,
            "tokens": sum(len(turn.token_ids) for turn in turns),
            "finish_reason": completion.finish_reason,
            "trained": id(group) in ids,
            **({"turns": len(turns)} if group.turns else {}),
            **({"scorer_error": score.failure.model_dump()} if score.failure else {}),
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
            "completion cut at sampling.maxTokens, and groupFilter.truncated is Drop",
            "Raise sampling.maxTokens, or set groupFilter.truncated: Keep",
        )
    seen = metrics(groups, len(groups))
    cut, mean = seen.get("completion/truncated_fraction", 0.0), seen.get(STEP_REWARD)
    lacking = sum(not group.scored for group in groups)
    shown = "no reward at all" if mean is None else f"mean reward {mean:.3g}"
    errors = f", {lacking} of {len(groups)} groups dropped for scorer errors" if lacking else ""
    detail = (
        f"in {rounds} rounds every group of completions had equal rewards or none "
        f"({shown}, {cut:.0%} of completions cut at sampling.maxTokens{errors})"
    )
    if 2 * lacking > len(groups):
        return detail, _SCORER
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
