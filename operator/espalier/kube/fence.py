"""A cluster that lets nothing be written once this replica may have been superseded."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence

from espalier.kube.cluster import MANAGER, STATUS_MANAGER, Cluster, Propagation, TokenReviewResult
from espalier.kube.objects import Body, Key

# Raises LeadershipLostError when this replica may not act any more.
Check = Callable[[], None]


class FencedCluster:
    """Cluster that calls ``check`` before each write, in the same step of the event loop."""

    def __init__(self, cluster: Cluster, check: Check) -> None:
        self._cluster = cluster
        self._check = check

    async def get(self, key: Key) -> Body | None:
        """See Cluster."""
        return await self._cluster.get(key)

    async def list(
        self,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        fields: Mapping[str, str] | None = None,
    ) -> builtins.list[Body]:
        """See Cluster."""
        return await self._cluster.list(kind, namespace, labels, fields=fields)

    async def each(
        self,
        kind: str,
        namespace: str | None,
        take: Callable[[Body], None],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """See Cluster."""
        await self._cluster.each(kind, namespace, take, labels)

    async def apply(self, kind: str, body: Body, *, manager: str = MANAGER) -> Body:
        """See Cluster."""
        self._check()
        return await self._cluster.apply(kind, body, manager=manager)

    async def apply_status(self, kind: str, body: Body, *, manager: str = STATUS_MANAGER) -> Body:
        """See Cluster."""
        self._check()
        return await self._cluster.apply_status(kind, body, manager=manager)

    async def create(self, kind: str, body: Body) -> Body | None:
        """See Cluster."""
        self._check()
        return await self._cluster.create(kind, body)

    async def replace(self, kind: str, body: Body) -> Body:
        """See Cluster."""
        self._check()
        return await self._cluster.replace(kind, body)

    async def delete(
        self, key: Key, *, propagation: Propagation = "Background", uid: str | None = None
    ) -> None:
        """See Cluster."""
        self._check()
        await self._cluster.delete(key, propagation=propagation, uid=uid)

    async def review_token(self, token: str, audiences: Sequence[str]) -> TokenReviewResult:
        """See Cluster."""
        return await self._cluster.review_token(token, audiences)

    async def review_access(  # noqa: PLR0917 the attributes of a SubjectAccessReview
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
    ) -> bool:
        """See Cluster."""
        return await self._cluster.review_access(
            user, groups, verb, group, resource, namespace, name
        )
