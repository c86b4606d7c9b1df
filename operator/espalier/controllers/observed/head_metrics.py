"""Measures and logs the moves of heads, as the cache sees them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from espalier.kube import queue_metrics
from espalier.kube.objects import Body, ObjectKey

logger = logging.getLogger(__name__)


class HeadMetrics:
    """A swap lasts from an edit's arrival until the status says that its checkpoint is served."""

    def __init__(self) -> None:
        self._edited: dict[ObjectKey, float] = {}

    def changed(self, key: ObjectKey, old: Body | None, new: Body | None) -> None:
        """A head changed in the cache; one that was not there before has not moved."""
        if old is None or new is None:
            self._edited.pop(key, None)
            return
        now = asyncio.get_running_loop().time()
        if old["metadata"].get("generation") != new["metadata"].get("generation"):
            self._edited[key] = now
        before, after = old.get("status", {}), new.get("status", {})
        if before.get("current") != after.get("current"):
            self._moved(key, new)
            if key in self._edited:
                queue_metrics.SWAP_LATENCY.observe(now - self._edited.pop(key))
        elif _settled(new):
            self._edited.pop(key, None)

    def _moved(self, key: ObjectKey, head: Body) -> None:
        status = head["status"]
        move = status.get("history", [{}])[0]
        reason = move.get("reason", "")
        queue_metrics.HEAD_MOVES.labels(reason=reason).inc()
        fields: dict[str, Any] = {
            **key.fields(),
            "generation": head["metadata"].get("generation"),
            "term": status.get("term"),
            "reason": reason,
        }
        logger.info("serves %s", status["current"].get("name") or "the base", extra=fields)


def _settled(head: Body) -> bool:
    """Whether the edit, if there was one, is dealt with."""
    if head["status"].get("observedGeneration") != head["metadata"].get("generation"):
        return False
    conditions = head["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
