"""Rules of what a completion is worth: taskset, rewards, length and errors."""

from __future__ import annotations

from typing import Any

from espalier.api.meta import Rule, newly
from espalier.api.run.taskset import is_played

REWARDS: tuple[Rule, ...] = (
    (
        "!has(self.rewards) || !has(self.taskset)"
        " || (!has(self.taskset.onError) && !has(self.taskset.scoreTimeoutSeconds))",
        "taskset.onError and taskset.scoreTimeoutSeconds are of a run without rewards: "
        "remove them, and set onError and timeoutSeconds in each of rewards",
        ".rewards",
    ),
    (
        f"!has(self.taskset) || !{is_played('self.taskset')} || !has(self.rewards)",
        "taskset is played over turns, and its environment pays a rollout: remove rewards",
        ".rewards",
    ),
    (
        f"!has(self.taskset) || !{is_played('self.taskset')} || (!has(self.lengthPenalty)"
        " && (!has(self.overlong) || self.overlong.policy != 'SoftPenalty'))",
        "lengthPenalty and overlong.policy SoftPenalty measure one completion, and taskset "
        "is played over turns: remove them, or choose another policy",
        ".lengthPenalty",
    ),
    (
        "!has(self.rewardAggregation) || self.rewardAggregation != 'NormalizeThenSum'"
        " || has(self.rewards)",
        "rewardAggregation NormalizeThenSum needs rewards: declare them, or remove it",
        ".rewardAggregation",
    ),
    (
        "!has(self.rewardAggregation) || self.rewardAggregation != 'NormalizeThenSum'"
        " || !has(self.advantage) || self.advantage.scale == 'None'",
        "rewardAggregation NormalizeThenSum divides each reward by its deviation already: "
        "remove advantage.scale, or set SumThenNormalize",
        ".rewardAggregation",
    ),
    (
        "!has(self.rolloutErrors) || !has(self.rolloutErrors.minGroupSize)"
        " || self.rolloutErrors.minGroupSize"
        " <= (has(self.groupSize) ? self.groupSize : 8)",
        "rolloutErrors.minGroupSize must not be above groupSize, which is 8 if unset",
        ".rolloutErrors.minGroupSize",
    ),
    (
        "!has(self.rolloutErrors) || !has(self.rolloutErrors.minGroupSize)"
        " || !has(self.rewardAggregation)"
        " || self.rewardAggregation != 'NormalizeThenSum'",
        "rolloutErrors.minGroupSize leaves rollouts out of a group, and rewardAggregation "
        "NormalizeThenSum compares whole groups: remove it, or set SumThenNormalize",
        ".rolloutErrors.minGroupSize",
    ),
    (
        "!has(self.overlong) || !has(self.overlong.bufferTokens)"
        " || self.overlong.bufferTokens"
        " <= (has(self.sampling) ? self.sampling.maxTokens : 256)",
        "overlong.bufferTokens must not be above sampling.maxTokens, which is 256 if unset",
        ".overlong.bufferTokens",
    ),
    (
        "!has(self.overlong) || self.overlong.policy != 'Mask' || !has(self.loss)"
        " || self.loss.name != 'cross_entropy'",
        "overlong.policy Mask needs a loss with advantages: cross_entropy has none, so "
        "choose Drop or another loss",
        ".overlong.policy",
    ),
)

_FREE_LENGTHS = (
    "has({run}.lengthPenalty) && {run}.lengthPenalty.targetTokens"
    " >= (has({run}.sampling) ? {run}.sampling.maxTokens : 256)"
)
_NO_WEIGHT = (
    "has({run}.rewards) && {run}.rewards.all(r, double(r.weight) == 0.0)"
    " && !has({run}.lengthPenalty)"
    " && !(has({run}.overlong) && {run}.overlong.policy == 'SoftPenalty')"
)


def later_rewards() -> list[dict[str, Any]]:
    """Rules that came after runs did."""
    return [
        newly(
            f"!({_FREE_LENGTHS.format(run='self')})",
            "lengthPenalty.targetTokens must be below sampling.maxTokens, which is 256 if unset, "
            "or no completion loses anything: lower it or raise that",
            ".lengthPenalty.targetTokens",
            unless=_FREE_LENGTHS.format(run="before"),
        ),
        newly(
            f"!({_NO_WEIGHT.format(run='self')})",
            "every weight in rewards is 0, so that all rewards are equal and nothing is learnt: "
            'give one of them a weight, such as "1.0"',
            ".rewards",
            unless=_NO_WEIGHT.format(run="before"),
        ),
    ]
