"""Distinguishes Espalier's own pods from strangers that carry its labels, and reports those."""

from __future__ import annotations

import logging

from espalier.core.manifests.labels import ROLE, Role
from espalier.core.pods.pod_membership import Stranger, stranger
from espalier.kube import queue_metrics
from espalier.kube.cache import Cache, ChangeSource
from espalier.kube.objects import Body, ObjectKey, key_of

logger = logging.getLogger(__name__)

# The kinds of the objects between a pod and its root, watched to follow the chain.
WORKLOADS = ("StatefulSet", "Deployment", "ReplicaSet", "Job")
ROLES: tuple[Role, ...] = ("trainer", "rollout", "runner", "importer", "collector", "scrubber")
ENDED = ("Succeeded", "Failed")


class Membership:
    """Judges pods by a cache that holds the chains' objects; each stranger is reported once."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        # By pod: the uid that was found to be ours, and the uid and reason that were reported.
        self._own: dict[ObjectKey, str] = {}
        self._reported: dict[ObjectKey, tuple[str, str]] = {}
        cache.on_change(self._forget)

    def has(self, pod: Body) -> bool:
        """Whether a pod is Espalier's own, as far as the cache knows by now."""
        key = key_of("Pod", pod)
        found = stranger(
            pod, lambda kind, name: self._cache.get(ObjectKey(kind, key.namespace, name))
        )
        if found is None:
            self._own[key] = pod["metadata"].get("uid", "")
        else:
            self._report(key, pod, found)
        return found is None

    def _report(self, key: ObjectKey, pod: Body, found: Stranger) -> None:
        """Counts and names a stranger, once it could be taken for one of ours.

        What its chain lacks may be seen a moment later: a pod gets its address long after the
        objects that it was made for exist.
        """
        status, uid = pod.get("status", {}), pod["metadata"].get("uid", "")
        if not status.get("podIP") and status.get("phase") not in ENDED:
            return
        # A pod of ours whose owner is gone will be deleted after it.
        orphaned = self._own.get(key) == uid
        if found.unseen and (orphaned or not self._cache.synced(found.unseen)):
            return
        if self._reported.get(key) == (uid, found.reason):
            return
        self._reported[key] = (uid, found.reason)
        claimed = pod["metadata"].get("labels", {}).get(ROLE, "")
        role = claimed if claimed in ROLES else "other"
        queue_metrics.PODS_IGNORED.labels(role=role, reason=found.reason).inc()
        logger.warning(
            "ignored %s, which is not Espalier's own: %s: %s",
            key,
            found.reason,
            found.message,
            extra=key.fields(),
        )

    def _forget(self, key: ObjectKey, _: Body | None, new: Body | None, __: ChangeSource) -> None:
        if key.kind == "Pod" and new is None:
            self._own.pop(key, None)
            self._reported.pop(key, None)
