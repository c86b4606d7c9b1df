"""API keys: their text, what is stored of them, and which of them are let in. Pure.

A key is ``tml-<namespace>-<id>-<secret>``; Tinker's client takes only what begins with ``tml-``.
The secret has 256 random bits, so what is stored is its plain SHA-256: a slow hash makes guesses
of few bits dear, and here there is nothing to guess; it would be paid for at each request instead.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

PREFIX = "tml-"
# One Secret of this name holds the keys of a namespace, so that RBAC can name it.
SECRET = "espalier-api-keys"
SECRET_TYPE = "espalier.dev/api-keys"
ID_BYTES, SECRET_BYTES = 6, 32
# What people call a key: nothing that a terminal or a log would not print as it is.
NAME = r"^[A-Za-z0-9]([-A-Za-z0-9._@]{0,61}[A-Za-z0-9])?$"

Scope = Literal["read", "sample", "train", "promote"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_KEY = re.compile(
    r"tml-(?P<namespace>[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)"
    r"-(?P<id>[0-9a-f]{12})-(?P<secret>[0-9a-f]{64})"
)
# The name of an entry, of 253 characters at most.
_ENTRY = re.compile(r"(?P<id>[0-9a-f]{12})\.(?P<account>[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)")
_DURATION = re.compile(r"(?P<number>[1-9][0-9]{0,5})(?P<unit>[mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class Record(BaseModel):
    """What an entry says of its key, as JSON; ``account_uid`` is empty where accounts have none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    account_uid: str
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    created: AwareDatetime
    expires: AwareDatetime | None


@dataclass(frozen=True)
class StoredKey:
    """An entry of a namespace's Secret: the key's id, its service account, and the rest."""

    id: str
    account: str
    record: Record

    @property
    def entry(self) -> str:
        """The name of the entry; an admission policy reads the account from it."""
        return f"{self.id}.{self.account}"

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.record.expires is not None and self.record.expires <= now


@dataclass(frozen=True)
class PresentedKey:
    """A key as a caller sent it, without its secret."""

    namespace: str
    id: str
    digest: str


Fault = Literal["Unknown", "Expired", "AccountGone"]


def key_text(namespace: str, identifier: str, secret: str) -> str:
    """The key: ``identifier`` of 12 and ``secret`` of 64 hexadecimal digits, both random."""
    return f"{PREFIX}{namespace}-{identifier}-{secret}"


def digest(text: str) -> str:
    """What is stored of a key, in place of it."""
    return hashlib.sha256(text.encode()).hexdigest()


def presented(text: str) -> PresentedKey | None:
    """What a caller's key names; None if it is no key."""
    match = _KEY.fullmatch(text)
    return PresentedKey(match["namespace"], match["id"], digest(text)) if match else None


def read_entries(data: Mapping[str, str]) -> tuple[dict[str, StoredKey], tuple[str, ...]]:
    """The keys of a namespace by id, and the names of entries that are none."""
    keys, unreadable = {}, []
    for name, text in data.items():
        match = _ENTRY.fullmatch(name)
        try:
            record = Record.model_validate_json(text) if match else None
        except ValidationError:
            record = None
        if match is None or record is None:
            unreadable.append(name)
        else:
            keys[match["id"]] = StoredKey(match["id"], match["account"], record)
    return keys, tuple(unreadable)


def fault(
    key: PresentedKey, stored: StoredKey | None, account_uid: str | None, now: datetime
) -> Fault | None:
    """Why a key is not let in; None if it is.

    Args:
        key: as it was presented.
        stored: the entry of its id.
        account_uid: of the service account as it is now; None if it is gone.
        now: the time.
    """
    if stored is None or not hmac.compare_digest(key.digest, stored.record.digest):
        return "Unknown"
    if stored.expired(now):
        return "Expired"
    return None if account_uid == stored.record.account_uid else "AccountGone"


def duration(text: str) -> timedelta | None:
    """``90m``, ``12h`` or ``30d``; None for any other text."""
    match = _DURATION.fullmatch(text)
    return timedelta(**{_UNITS[match["unit"]]: int(match["number"])}) if match else None
