"""Who moved a head, what owns it and who may move it: read from the API server, and remembered.

The watch keeps no ``managedFields``, which say this.
"""

from __future__ import annotations

from cachetools import LRUCache

from espalier.api.checkpointhead import CheckpointHead
from espalier.core.gitowner import git_owner
from espalier.core.head.editor import asked_by
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.console.views import Standing
from espalier.gateway.problems import not_ready
from espalier.gateway.world.world import NamespacedName
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import ObjectKey

CAPACITY = 1024


class Standings:
    """Reads each version of a head once."""

    def __init__(self, cluster: Cluster, auth: Authenticator) -> None:
        self._cluster = cluster
        self._auth = auth
        # By head and version: who moved it, and what owns it.
        self._read: LRUCache[tuple[str, str], tuple[str, str]] = LRUCache(CAPACITY)

    async def of(self, user: User, head: CheckpointHead) -> Standing:
        """The standing of a head to a caller."""
        name = NamespacedName(head.metadata.namespace, head.metadata.name)
        version = (head.metadata.uid, head.metadata.resource_version)
        read = self._read.get(version)
        if read is None:
            read = self._read[version] = await self._look(name)
        moved_by, owner = read
        may = await self._auth.allowed(user, "update", "checkpointheads", name)
        return Standing(moved_by, owner, may)

    async def _look(self, name: NamespacedName) -> tuple[str, str]:
        try:
            body = await self._cluster.get(ObjectKey("CheckpointHead", name.namespace, name.name))
        except ClusterError as error:
            raise not_ready(
                "HeadNotRead", f"the API server did not answer for head {name}: {error.message}"
            ) from error
        if body is None:
            return "", ""
        owner = git_owner(body["metadata"])
        return asked_by(body["metadata"]), str(owner) if owner is not None else ""
