"""API keys for tests, made as the command line makes them."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from espalier.core.api_keys import (
    ID_BYTES,
    SCOPES,
    SECRET,
    SECRET_BYTES,
    SECRET_TYPE,
    Record,
    Scope,
    StoredKey,
    digest,
    key_text,
)
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
    identifier = secrets.token_hex(ID_BYTES)
    key = key_text(namespace, identifier, secrets.token_hex(SECRET_BYTES))
    created = datetime(2025, 12, 1, tzinfo=UTC)
    record = Record(
        name=identifier,
        digest=digest(key),
        account_uid=uid,
        scopes=scopes,
        created=created,
        expires=expires,
    )
    entry = StoredKey(identifier, account, record).entry
    return Issued(key, identifier, entry, record.model_dump_json())


def secret(namespace: str, *keys: Issued) -> Body:
    """The Secret of a namespace that has these keys."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": SECRET_TYPE,
        "metadata": {"name": SECRET, "namespace": namespace},
        "data": {key.entry: base64.b64encode(key.text.encode()).decode() for key in keys},
    }
