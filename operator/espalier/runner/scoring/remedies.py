"""What a person can do about scores that cannot be had."""

from __future__ import annotations

REMEDY = (
    "Let taskset.onError say what such answers are worth (DropGroup or Zero), say in "
    "taskset.promptTemplate how to answer, or raise taskset.scoreTimeoutSeconds for slow scorers"
)
REWARD_REMEDY = (
    "Mend the reward, raise its timeoutSeconds, or let its onError say what such answers are worth "
    "(Drop or Zero)"
)
