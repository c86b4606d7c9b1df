"""API keys for tests, made as the command line makes them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime

from espalier.cli.issue_key import issue_key
from espalier.core.api_keys import SCOPES, SECRET, SECRET_TYPE, Scope
from espalier.kube.objects import Body


@dataclass(frozen=True)
class Issued:
    """``key`` is the caller's; ``entry`` and ``text`` are what is stored."""

    key: str
    id: str
    entry: str
    text: str


def issued(
    namespace: str,
    account: str,
    uid: str,
    *,
    scopes: tuple[Scope, ...] = SCOPES,
    expires: datetime | None = None,
) -> Issued:
    created = datetime(2025, 12, 1, tzinfo=UTC)
    key, stored = issue_key(
        namespace, account, account_uid=uid, scopes=scopes, created=created, expires=expires
    )
    return Issued(key, stored.id, stored.entry, stored.record.model_dump_json())


def secret(namespace: str, *keys: Issued) -> Body:
    """The Secret of a namespace that has these keys."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": SECRET_TYPE,
        "metadata": {"name": SECRET, "namespace": namespace},
        "data": {key.entry: base64.b64encode(key.text.encode()).decode() for key in keys},
    }
