"""Lets in callers who send an API key, as the service account that the key is of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from espalier.core.api_keys import (
    SCOPES,
    SECRET,
    Fault,
    PresentedKey,
    Scope,
    StoredKey,
    fault,
    presented,
    read_entries,
)
from espalier.gateway.access.key_source import KeySource
from espalier.gateway.problems import RefusalError

_log = logging.getLogger(__name__)
_ISSUE = "Issue one: espalier keys create NAME --service-account ACCOUNT"


@dataclass(frozen=True)
class Admitted:
    """Whom a key of this id stands for. ``scopes``: None if the key is limited to none."""

    namespace: str
    account: str
    scopes: frozenset[Scope] | None
    id: str


class ApiKeys:
    """Checks keys of the served namespaces against what is stored there.

    Args:
        source: where they are stored.
        namespaces: those that are served. Nothing is read of any other.
        now: the time.
    """

    def __init__(
        self,
        source: KeySource,
        namespaces: Collection[str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._source = source
        self._namespaces = frozenset(namespaces)
        self._now = now
        self._unreadable: dict[str, tuple[str, ...]] = {}

    async def admit(self, text: str) -> Admitted:
        """Whom a key stands for; RefusalError 401 names what is wrong with it."""
        key = presented(text)
        if key is None:
            raise RefusalError(
                401, "ApiKeyMalformed", "the API key is cut off, or is none of Espalier's", _ISSUE
            )
        stored = await self._stored(key)
        uid = await self._uid(key.namespace, stored)
        found = fault(key, stored, uid, self._now())
        if stored is None or found == "Unknown":
            raise RefusalError(
                401,
                "ApiKeyUnknown",
                f"namespace {key.namespace} has no such API key: it was revoked, or never issued",
                _ISSUE,
            )
        if found is not None:
            raise _over(found, key.namespace, stored)
        return Admitted(key.namespace, stored.account, _limits(stored.record.scopes), stored.id)

    async def _stored(self, key: PresentedKey) -> StoredKey | None:
        if key.namespace not in self._namespaces:
            return None
        for newest in (False, True):
            entries = await self._source.entries(key.namespace, newest=newest)
            keys, unreadable = read_entries(entries)
            self._report(key.namespace, unreadable)
            if key.id in keys:
                return keys[key.id]
        return None

    def _report(self, namespace: str, unreadable: tuple[str, ...]) -> None:
        if unreadable != self._unreadable.get(namespace, ()):
            self._unreadable[namespace] = unreadable
            _log.warning(
                "entries that are no API keys",
                extra={"namespace": namespace, "secret": SECRET, "entries": unreadable},
            )

    async def _uid(self, namespace: str, stored: StoredKey | None) -> str | None:
        if stored is None:
            return None
        return await self._source.account_uid(namespace, stored.account)


def _over(fault: Fault, namespace: str, stored: StoredKey) -> RefusalError:
    """401 for a key that was good once."""
    name = stored.record.name
    if fault == "Expired":
        return RefusalError(
            401, "ApiKeyExpired", f"API key {name} expired at {stored.record.expires}", _ISSUE
        )
    return RefusalError(
        401,
        "ApiKeyAccountGone",
        f"service account {namespace}/{stored.account} of API key {name} was deleted",
        _ISSUE,
    )


def _limits(scopes: Collection[Scope]) -> frozenset[Scope] | None:
    given = frozenset(scopes)
    return None if given == frozenset(SCOPES) else given
