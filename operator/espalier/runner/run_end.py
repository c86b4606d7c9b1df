"""Ends that the runner cannot mend: whose fault, and what is left behind for the operator."""

from __future__ import annotations

import os
from pathlib import Path

from espalier.api.wire import Problem

# The operator turns the first into a condition; the Job retries the second.
EXIT_USER_ERROR = 64
EXIT_TRY_AGAIN = 75

TERMINATION_LOG = Path(os.environ.get("ESPALIER_TERMINATION_LOG", "/dev/termination-log"))


class UserError(Exception):
    """Only the user can repair this: wrong tasks, wrong arguments, rewards that teach nothing."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        super().__init__(f"{reason}: {detail}. {remedy}")
        self.problem = Problem(detail=detail, reason=reason, remedy=remedy)


class WaitError(Exception):
    """A named condition did not come true in time; a fresh start may help."""

    def __init__(self, reason: str, seconds: float, detail: str) -> None:
        super().__init__(f"{reason}: waited {seconds:.0f} s; {detail}")
        remedy = "The Job starts the runner again; it resumes at the step where it stood."
        self.problem = Problem(detail=str(self), reason=reason, remedy=remedy)


def leave(problem: Problem, path: Path) -> None:
    """Writes the problem as a container's last words; outside of a pod there is no such file."""
    if path.exists():
        path.write_text(problem.model_dump_json())
