"""Errors of tasks and environments: the user's mistakes, and rollouts that came to nothing."""

from __future__ import annotations

from typing import Literal

from espalier.api.wire import Problem

# Raised: the environment or scorer did. Timeout: the rollout took longer than timeoutSeconds, or
# the score than scoreTimeoutSeconds. Memory: the scorer wanted more than its limit. Died: the
# process or server that plays or scores ended. NotFinite: the reward is NaN or infinite.
# OutOfRange: a score is not from 0 to 1. Malformed: no reward, or what is not of the protocol.
Cause = Literal["Raised", "Timeout", "Memory", "Died", "NotFinite", "OutOfRange", "Malformed"]


class UserError(Exception):
    """Only the user can repair this: wrong tasks, wrong arguments, rewards that teach nothing."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        self.problem = Problem(detail=detail, reason=reason, remedy=remedy)
        super().__init__(f"{reason}: {self.problem.text}")


class RolloutFailedError(Exception):
    """One rollout came to nothing, for a named cause; the others go on."""

    def __init__(self, cause: Cause, detail: str) -> None:
        self.cause: Cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


def invalid(detail: str, remedy: str) -> UserError:
    """A taskset that cannot be opened: ``detail`` begins with the field."""
    return UserError("TasksetInvalid", detail, remedy)
