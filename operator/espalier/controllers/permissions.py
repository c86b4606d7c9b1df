"""What becomes of an object that the operator may not act on: it says so, and waits."""

from __future__ import annotations

import contextlib

from espalier.controllers.services import Services
from espalier.core import conditions
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import Key

RETRY_SECONDS = 30.0
OWN = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint")


def with_remedy(refused: str) -> str:
    """What the API server refused, and who can end that."""
    return f"{refused}. Grant it: the chart's roles hold all that is needed"


class Permissions:
    """Keeps what was forbidden, for /readyz, and tells it to the objects concerned."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._refused: dict[Key, str] = {}

    @property
    def fault(self) -> str | None:
        """The first thing that is forbidden, in the API server's words."""
        if not self._refused:
            return None
        key, message = next(iter(self._refused.items()))
        return f"{key}: {message}"

    def granted(self, key: Key) -> None:
        """A pass over the object went through."""
        self._refused.pop(key, None)

    async def refused(self, key: Key, error: ClusterError) -> float:
        """Say on the object what is forbidden; seconds until it should be tried again."""
        first = self._refused.get(key) != error.message
        self._refused[key] = error.message
        body = self._services.snapshot.cache.get(key)
        if body is None or key.kind not in OWN or not first:
            return RETRY_SECONDS
        message = with_remedy(error.message)
        await self._services.writer.record(key.kind, body, "Warning", conditions.FORBIDDEN, message)
        # Its status may be the very thing that is forbidden; Event and /readyz have it then.
        with contextlib.suppress(ClusterError):
            await self._services.writer.stall(
                key.kind, body, conditions.FORBIDDEN, message, self._services.now()
            )
        return RETRY_SECONDS
