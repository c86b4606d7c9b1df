"""Errors with a reason and a remedy: over HTTP, and as the last words of a process."""

from __future__ import annotations

import json
import os
from pathlib import Path

from espalier.api.wire import Problem

# The operator reads this exit code as "a user's mistake: do not restart".
EXIT_USER_MISTAKE = 64
TERMINATION_LOG = "/dev/termination-log"


class CommandError(Exception):
    """An error to answer with: an HTTP status and a Problem."""

    def __init__(self, status: int, reason: str, detail: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.status = status
        self.problem = Problem(detail=detail, reason=reason, remedy=remedy)


class UserMistakeError(Exception):
    """Something only the user can mend, found before the trainer could serve."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.problem = Problem(detail=detail, reason=reason, remedy=remedy)


def invalid(field: str, detail: str, remedy: str = "") -> CommandError:
    """422: the request names what cannot be applied."""
    return CommandError(422, "InvalidRequest", f"{field}: {detail}", remedy)


def volume_full(error: BaseException) -> CommandError:
    """507: nothing was applied and nothing is lost."""
    return CommandError(
        507,
        "VolumeFull",
        f"the volume has no space left ({error}); nothing was applied and the gradients are kept",
        "enlarge the claim or delete checkpoints, then send the command again",
    )


def leave_message(document: dict[str, object]) -> None:
    """Prints a JSON document and leaves it as the container's termination message.

    The kubelet makes the file beforehand; outside a pod there is none and printing is all.
    """
    text = json.dumps(document)
    print(text, flush=True)
    path = Path(os.environ.get("ESPALIER_TERMINATION_LOG", TERMINATION_LOG))
    if path.exists():
        path.write_text(text)
