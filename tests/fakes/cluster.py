"""The API server in memory with faults: calls that fail before or after their effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.kube.cluster import ClusterError, Extra, TokenReviewResult
from espalier.kube.objects import Body, ObjectKey
from espalier.local.memory_apiserver import MemoryCluster
from espalier.local.memory_objects import Watcher

CREATED = "2026-01-01T00:00:00Z"


@dataclass
class Fault:
    """Raise at the ``remaining``-th mutating call from now, before or after its effect."""

    remaining: int
    error: BaseException
    after_effect: bool


class FakeCluster(MemoryCluster):
    """Cluster in memory. ``calls`` lists the mutating calls as (verb, key)."""

    def __init__(self, now: Callable[[], str] = lambda: CREATED) -> None:
        super().__init__(now)
        self.calls: list[tuple[str, ObjectKey]] = []
        self.tokens: dict[str, TokenReviewResult] = {}
        self.allowed: set[tuple[str, str, str, str, str]] = set()
        # Namespaces in which nothing can be made any more.
        self.terminating: set[str] = set()
        self._uids = 0
        self._fault: Fault | None = None

    def unwatch(self, watcher: Watcher) -> None:
        """End a watch."""
        self._watchers.remove(watcher)

    def fail_after(self, calls: int, error: BaseException, *, after_effect: bool = False) -> None:
        """Raise ``error`` once, at the mutating call number ``calls`` (1 is the next)."""
        self._fault = Fault(calls, error, after_effect)

    async def review_token(self, token: str, audiences: Sequence[str]) -> TokenReviewResult:
        found = self.tokens.get(token)
        if found is None or (audiences and not {*audiences} & {*found.audiences}):
            return TokenReviewResult(authenticated=False, error="invalid bearer token")
        return found

    async def review_access(  # noqa: PLR0917 the port's signature
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        extra: Extra = (),
    ) -> bool:
        return (user, verb, resource, namespace, name) in self.allowed

    def _mutate(self, verb: str, key: ObjectKey, effect: Callable[[ObjectKey], Any]) -> Any:
        self.calls.append((verb, key))
        fault = self._fault
        if fault is not None:
            fault.remaining -= 1
            if fault.remaining == 0:
                self._fault = None
                if fault.after_effect:
                    effect(key)
                raise fault.error
        return super()._mutate(verb, key, effect)

    def _new(self, key: ObjectKey) -> Body:
        body = super()._new(key)
        # The same in every run, so that a seed gives the same story.
        body["metadata"]["creationTimestamp"] = CREATED
        return body

    def _uid(self) -> str:
        self._uids += 1
        return f"uid-{self._uids}"

    def _store(self, key: ObjectKey, body: Body, live: Body | None) -> Body:
        if live is None and key.namespace in self.terminating:
            text = f"{key} is forbidden: namespace {key.namespace} because it is being terminated"
            raise ClusterError(403, "Forbidden", text)
        return super()._store(key, body, live)
