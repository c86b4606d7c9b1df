"""Errors that end the runner: the user's mistakes, and waits that took too long."""

from __future__ import annotations

from espalier.api.wire.problem import Problem
from espalier.environments.errors import UserError

__all__ = ["UserError", "WaitError"]


class WaitError(Exception):
    """A named condition did not come true in time; another start may help."""

    def __init__(self, reason: str, seconds: float, detail: str) -> None:
        super().__init__(f"{reason}: waited {seconds:.0f} s; {detail}")
        remedy = "The Job starts the runner again; it resumes at the step where it stood."
        self.problem = Problem(detail=str(self), reason=reason, remedy=remedy)
