"""Events of objects: one per transition, so that ``kubectl describe`` shows what happened.

A repeated event is counted in one Event, whose name is derived from the object and the event.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import Body, ObjectKey

logger = logging.getLogger(__name__)

COMPONENT = "espalier"
# The API's bound on the message of an Event.
MESSAGE_CHARS = 1024

EventType = Literal["Normal", "Warning"]


def _utc() -> datetime:
    return datetime.now(UTC)


class EventRecorder:
    """Records Events; call it on transitions only. ``instance`` is the replica, such as its pod."""

    def __init__(
        self, cluster: Cluster, instance: str = "", now: Callable[[], datetime] = _utc
    ) -> None:
        self._cluster = cluster
        self._instance = instance
        self._now = now

    async def record(
        self, regarding: Body, event_type: EventType, reason: str, message: str
    ) -> None:
        """Record one event on an object. A failure is logged: an Event must not stop its cause."""
        message = message[:MESSAGE_CHARS]
        try:
            await self._apply(regarding, event_type, reason, message)
        except ClusterError as error:
            name = regarding["metadata"]["name"]
            logger.warning("event %s on %s not recorded: %s", reason, name, error)

    async def _apply(
        self, regarding: Body, event_type: EventType, reason: str, message: str
    ) -> None:
        key = ObjectKey(
            "Event", regarding["metadata"]["namespace"], _name(regarding, reason, message)
        )
        now = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        earlier = await self._cluster.get(key) or {}
        metadata = regarding["metadata"]
        body = {
            "metadata": {"name": key.name, "namespace": key.namespace},
            "involvedObject": {
                "apiVersion": regarding["apiVersion"],
                "kind": regarding["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "type": event_type,
            "reason": reason,
            "message": message,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
            "firstTimestamp": earlier.get("firstTimestamp", now),
            "lastTimestamp": now,
            "count": earlier.get("count", 0) + 1,
        }
        await self._cluster.apply("Event", body)


def _name(regarding: Body, reason: str, message: str) -> str:
    """``<object>.<hash>``, as Events are named, the same for the same event of the same object."""
    metadata = regarding["metadata"]
    identity = "\n".join((metadata["uid"], reason, message)).encode()
    return f"{metadata['name']}.{hashlib.sha256(identity).hexdigest()[:16]}"
