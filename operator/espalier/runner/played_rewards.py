"""The reward of tasks that are played: what the environment pays for a rollout, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from espalier.api.run.rewards import OnRewardError
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client.completion import Completion
from espalier.rewards import Given, Part, Question, Rewards
from espalier.rewards.figures import TASKSET
from espalier.rewards.lengths import LengthRules
from espalier.rewards.scored import Written
from espalier.runner.run_end import UserError
from espalier.runner.scoring.remedies import REMEDY


@dataclass(frozen=True)
class Played:
    """A rollout that is over, as rewards read it; ``given`` is what its environment paid.

    ``retries`` counts its tries after the first.
    """

    turns: tuple[Completion, ...]
    given: Given
    retries: int = 0

    @property
    def text(self) -> str:
        """Of the last turn; empty where there was none."""
        return self.turns[-1].text if self.turns else ""

    @property
    def token_ids(self) -> Sequence[int]:
        """The sampled tokens of all turns, (T,)."""
        return [token for turn in self.turns for token in turn.token_ids]

    @property
    def truncated(self) -> bool:
        """Whether a turn was cut at the token limit."""
        return any(turn.truncated for turn in self.turns)


class Paid:
    """Gives what the environment paid."""

    async def ready(self) -> Mapping[str, object]:
        """Nothing: the environment is opened on its own."""
        return {}

    async def give(self, question: Question, written: Written) -> Given:
        """What came with the rollout."""
        if not isinstance(written, Played):
            raise TypeError("an environment pays rollouts, not completions")
        return written.given

    async def close(self) -> None:
        """Nothing: the environment is closed on its own."""


def open_played_rewards(spec: TrainingRunSpec, taskset: Taskset, lengths: LengthRules) -> Rewards:
    """The environment's reward, under what the run says of errors and of cut turns.

    Raises:
        UserError: ``RewardInvalid``: the run declares what needs one completion with an answer.
    """
    if spec.rewards is not None:
        raise _invalid("rewards", "its environment pays a rollout", "remove rewards")
    if spec.length_penalty is not None:
        raise _invalid("lengthPenalty", "a rollout has several completions", "remove lengthPenalty")
    if spec.overlong.policy == "SoftPenalty":
        raise _invalid(
            "overlong.policy", "SoftPenalty measures one completion", "choose another policy"
        )
    part = Part(TASKSET, Paid(), on_error=on_error(taskset), remedy=REMEDY)
    return Rewards([part], lambda _: None, lengths)


def on_error(taskset: Taskset) -> OnRewardError:
    """What follows where the taskset's own score cannot be had."""
    return "Drop" if taskset.on_error == "DropGroup" else taskset.on_error


def _invalid(field: str, problem: str, remedy: str) -> UserError:
    return UserError(
        "RewardInvalid", f"{field}: the taskset is played over turns, and {problem}", remedy
    )
