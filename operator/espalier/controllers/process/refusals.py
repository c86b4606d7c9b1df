"""Handles actions that the API server refuses the operator, or that it refuses itself.

The object concerned quotes the API server, and is tried again when it changes or after a while.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.core import conditions
from espalier.kube.cluster import HTTP_FORBIDDEN, HTTP_UNPROCESSABLE, ClusterError
from espalier.kube.objects import ObjectKey

RETRY_SECONDS = 30.0
OWN = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint")
# The reason of the condition by the status of the answer.
REASONS = {HTTP_FORBIDDEN: conditions.FORBIDDEN, HTTP_UNPROCESSABLE: conditions.INVALID}


def reason_of(error: ClusterError) -> str:
    """The reason of the condition; empty for an error that is none of these."""
    if error.reason == conditions.NAME_TAKEN:
        return conditions.NAME_TAKEN
    return REASONS.get(error.status, "")


def with_remedy(forbidden: str) -> str:
    """The API server's message, and who can grant what is missing."""
    return f"{forbidden}. Grant it: the chart's roles hold all that is needed"


class Refusals:
    """Remembers refused actions; reports them on their objects, and forbidden ones on /readyz."""

    def __init__(self, lister: Lister, writer: StatusWriter, now: Callable[[], str]) -> None:
        self._lister = lister
        self._writer = writer
        self._now = now
        self._refused: dict[ObjectKey, ClusterError] = {}

    @property
    def forbidden(self) -> str | None:
        """The first thing that is forbidden, in the API server's words."""
        for key, error in self._refused.items():
            if error.status == HTTP_FORBIDDEN:
                return f"{key}: {error.message}"
        return None

    def ended(self, key: ObjectKey) -> None:
        """A pass over the object succeeded."""
        self._refused.pop(key, None)

    async def refused(self, key: ObjectKey, error: ClusterError) -> float:
        """Report the refusal on the object; returns the seconds until the next try."""
        before = self._refused.get(key)
        self._refused[key] = error
        body = self._lister.body(key)
        known = before is not None and before.message == error.message
        if body is None or key.kind not in OWN or known:
            return RETRY_SECONDS
        reason, message = reason_of(error), _message(error)
        await self._writer.record(key.kind, body, "Warning", reason, message)
        # Its status may be the very thing that is refused; Event and /readyz have it then.
        with contextlib.suppress(ClusterError):
            await self._writer.stall(key.kind, body, reason, message, self._now())
        return RETRY_SECONDS


def _message(error: ClusterError) -> str:
    if error.status == HTTP_FORBIDDEN:
        return with_remedy(error.message)
    if error.reason == conditions.NAME_TAKEN:
        return error.message
    return f"the API server does not take what this asks for: {error.message}. Edit the spec"
