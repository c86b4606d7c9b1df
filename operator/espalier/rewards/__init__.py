"""What a completion is worth: several weighted rewards, their sums, and what long ones lose."""

from espalier.rewards.failure import Failure, RewardFailedError
from espalier.rewards.rewards import Part, Rewards, Source
from espalier.rewards.scored import Failed, Given, Question, Scored

__all__ = [
    "Failed",
    "Failure",
    "Given",
    "Part",
    "Question",
    "RewardFailedError",
    "Rewards",
    "Scored",
    "Source",
]
