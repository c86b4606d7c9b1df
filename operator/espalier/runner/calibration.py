"""What a model makes of a taskset before it is trained: will a run on these tasks learn? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

from espalier.api.run.group_filter import GroupFilter
from espalier.client.completion import Completion
from espalier.loop.sample_metrics import TOLERANCE
from espalier.rewards.figures import counted
from espalier.runner.rewards import Group, kept, uninformative

# Below this share of groups that teach, most of what is sampled is thrown away.
FEW_TEACH = 0.25
# Above this share of cut answers, the limit decides more than the model does.
MANY_CUT = 0.1


@dataclass(frozen=True)
class Lengths:
    """Tokens: the shortest, the median, the nine of ten, the longest."""

    shortest: int
    median: int
    nine_of_ten: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """Of at least one length; a quantile is one of the lengths, not between two."""
        ordered = sorted(lengths)
        last = len(ordered) - 1
        return cls(ordered[0], ordered[last // 2], ordered[round(0.9 * last)], ordered[last])


@dataclass(frozen=True)
class Calibration:
    """The figures of groups that were sampled for nothing but these figures.

    ``spread`` is the mean of the groups' standard deviations (the population's). ``teaching``,
    ``solved`` and ``failed`` are shares of the groups: those that the run keeps with rewards that
    differ, those with all rewards equal to 1, and those with all equal to 0. ``cut`` is the
    share of answers cut at ``sampling.maxTokens``. ``reward_mean`` and ``reward_deviation`` are
    None where no answer has a reward.
    """

    groups: int
    answers: int
    too_long: int
    reward_mean: float | None
    reward_deviation: float | None
    spread: float
    teaching: float
    solved: float
    failed: float
    cut: float
    scorer_errors: int
    prompt_tokens: Lengths | None
    answer_tokens: Lengths | None
    verdict: str
    remedy: str

    def wire(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def calibrate(groups: Sequence[Group], rules: GroupFilter, too_long: int = 0) -> Calibration:
    """The figures of groups of one sampling.

    ``rules`` say which groups the run leaves out; ``too_long`` tasks could not be asked.
    """
    answers = [answer for group in groups for answer in group.written]
    rewards = [reward for group in groups for reward in group.rewards]
    # What is kept though its rewards are equal teaches nothing.
    teaching = sum(group.can_teach for group in kept(groups, rules)) / max(1, len(groups))
    verdict, remedy = _verdict(groups, answers, teaching, too_long)
    return Calibration(
        groups=len(groups),
        answers=len(answers),
        too_long=too_long,
        reward_mean=fmean(rewards) if rewards else None,
        reward_deviation=pstdev(rewards) if rewards else None,
        spread=_mean([pstdev(group.rewards) for group in groups if group.rewards]),
        teaching=teaching,
        solved=_mean([_all_are(group, 1.0) for group in groups]),
        failed=_mean([_all_are(group, 0.0) for group in groups]),
        cut=_mean([answer.truncated for answer in answers]),
        scorer_errors=counted(score for group in groups for score in group.scores).total(),
        prompt_tokens=_lengths([len(answer.prompt_token_ids) for answer in answers]),
        answer_tokens=_lengths([len(answer.token_ids) for answer in answers]),
        verdict=verdict,
        remedy=remedy,
    )


def _verdict(
    groups: Sequence[Group], answers: Sequence[Completion], teaching: float, too_long: int
) -> tuple[str, str]:
    """One sentence, and what to do; the second is empty where there is nothing to do."""
    if not groups:
        return (
            f"none of {too_long} tasks fits the context",
            "Ask shorter tasks, lower sampling.maxTokens, or raise the model's "
            "rollout.maxModelTokens",
        )
    if not teaching:
        return uninformative(groups, 1)
    cut = _mean([answer.truncated for answer in answers])
    if cut > MANY_CUT:
        return (
            f"{cut:.0%} of the answers are cut at sampling.maxTokens",
            "Raise sampling.maxTokens, or check that the model ends its turn (stopTokenIds)",
        )
    if teaching < FEW_TEACH:
        return (
            f"only {teaching:.0%} of the groups have rewards that differ; the others teach nothing",
            "Choose tasks nearer to what the model can do, or raise groupSize",
        )
    return f"{teaching:.0%} of the groups teach", ""


def _all_are(group: Group, reward: float) -> bool:
    return group.scored and all(abs(given - reward) <= TOLERANCE for given in group.rewards)


def _lengths(lengths: Sequence[int]) -> Lengths | None:
    return Lengths.of(lengths) if lengths else None


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
