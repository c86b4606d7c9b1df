"""Ids of requests whose result comes later. An id says what was asked, so that any gateway can
answer it, and one that has just started too. Whoever shows one needs the rights to what it names.

``<kind>/<subject>/<number>[/<details>]``; details are JSON, deflated. Pure.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from espalier.untrusted import read_json

# Of the details of an id, inflated; those of a sample have the tokens of its prompt.
MAX_BYTES, MAX_SAMPLE_BYTES = 128 * 2**10, 8 * 2**20
MAX_ERROR_CHARS = 4000
MAX_NUMBER = 2**63 - 1

Kind = Literal["create", "train", "save", "sample", "failed"]
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}


@dataclass(frozen=True)
class Future:
    """A request whose result comes later.

    Attributes:
        kind: what is awaited.
        subject: the id of a model or a sampler.
        number: of the request among those of its subject.
        details: what else its answer needs.
    """

    kind: Kind
    subject: str
    number: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        plain = f"{self.kind}/{self.subject}/{self.number}"
        if not self.details:
            return plain
        packed = zlib.compress(json.dumps(self.details, separators=(",", ":")).encode())
        return f"{plain}/{base64.urlsafe_b64encode(packed).decode()}"

    @classmethod
    def read(cls, text: str) -> Future | None:
        """The request of an id, of a sample without its details; None if it is none."""
        kind, subject, number, details = _parts(text)
        if kind not in _KINDS or not (number.isascii() and number.isdigit()) or len(number) > 19:
            return None
        if int(number) > MAX_NUMBER:
            return None
        # What a few KiB of them become takes a hundred MB: for those who may sample alone.
        read = {} if kind == "sample" else _details(details, MAX_BYTES)
        return None if read is None else cls(_KINDS[kind], subject, int(number), read)


def sample_details(text: str) -> dict[str, Any] | None:
    """The details of the id of a sample; None if they are none."""
    *_, details = _parts(text)
    return _details(details, MAX_SAMPLE_BYTES)


def failed(subject: str, error: str, category: str = "user") -> Future:
    """A request that was refused: the client learns of it as of one that failed."""
    return Future("failed", subject, 0, {"error": error[:MAX_ERROR_CHARS], "category": category})


def _parts(text: str) -> list[str]:
    """Kind, subject, number and details as they are written, empty where one is left out."""
    return [*text.split("/", 3), "", "", ""][:4]


def _details(text: str, most: int) -> dict[str, Any] | None:
    if not text:
        return {}
    try:
        inflater = zlib.decompressobj()
        plain = inflater.decompress(base64.b64decode(text, altchars=b"-_", validate=True), most)
        found = read_json(plain) if inflater.eof else None
    except (binascii.Error, zlib.error, ValueError):
        return None
    return found if isinstance(found, dict) else None
