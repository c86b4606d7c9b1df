"""What becomes of an object that the operator may not act on: it says so, and waits."""

from __future__ import annotations

import contextlib

from pydantic import TypeAdapter

from espalier.api.meta import Condition
from espalier.controllers.services import Services
from espalier.core import conditions
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import Body, Key

FORBIDDEN = 403
REASON = "Forbidden"
RETRY_SECONDS = 30.0
CONDITIONS = TypeAdapter(list[Condition])
OWN = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint")


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
        message = f"{error.message}. Grant it: the chart's roles hold all that is needed"
        await self._services.writer.record(key.kind, body, "Warning", REASON, message)
        # Its status may be the very thing that is forbidden; Event and /readyz have it then.
        with contextlib.suppress(ClusterError):
            await self._condition(key, body, message)
        return RETRY_SECONDS

    async def _condition(self, key: Key, body: Body, message: str) -> None:
        """The triple as it is now, on top of whatever else the status says."""
        status = body.get("status", {})
        held = CONDITIONS.validate_python(status.get("conditions", []))
        triple = conditions.stalled(REASON, message)
        generation = body["metadata"].get("generation", 0)
        settled = conditions.settle(held, triple, generation, self._services.now())
        others = [c for c in held if c.type not in {finding.type for finding in triple}]
        wire = CONDITIONS.dump_python([*settled, *others], mode="json", by_alias=True)
        seen = {n: body["metadata"][n] for n in ("name", "namespace", "uid", "resourceVersion")}
        intent = {"conditions": wire, "observedGeneration": generation}
        await self._services.cluster.apply_status(
            key.kind, {"metadata": seen, "status": {**status, **intent}}
        )
