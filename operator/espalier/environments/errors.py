"""Errors of tasks and environments: the user's mistakes, and rollouts that came to nothing."""

from __future__ import annotations

from espalier.api.wire.problem import Problem
from espalier.rewards.failure import Cause

__all__ = ["Cause", "RolloutFailedError", "UserError", "invalid"]


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
