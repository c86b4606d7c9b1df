"""Makes an API key and what is stored of it."""

from __future__ import annotations

import secrets
from datetime import datetime

from espalier.core.api_keys import (
    ID_BYTES,
    SECRET_BYTES,
    Record,
    Scope,
    StoredKey,
    digest,
    key_text,
)


def issue_key(
    namespace: str,
    account: str,
    *,
    account_uid: str,
    scopes: tuple[Scope, ...],
    created: datetime,
    expires: datetime | None,
    name: str = "",
) -> tuple[str, StoredKey]:
    """The text for its user, which is nowhere else, and the key as it is stored.

    Args:
        namespace: of the service account.
        account: the service account.
        account_uid: its uid.
        scopes: what the key may do.
        created: now.
        expires: None: never.
        name: to know it by; its id without one.
    """
    identifier = secrets.token_hex(ID_BYTES)
    text = key_text(namespace, identifier, secrets.token_hex(SECRET_BYTES))
    record = Record(
        name=name or identifier,
        digest=digest(text),
        account_uid=account_uid,
        scopes=scopes,
        created=created,
        expires=expires,
    )
    return text, StoredKey(identifier, account, record)
