"""What a client sends to the engine, under its key, and what it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from espalier.api.wire.base import Wire
from espalier.api.wire.declared import Declared
from espalier.trainer.volume.command_log import Key, Kind


class Empty(Wire):
    """The body of zero-grad."""


@dataclass(frozen=True)
class Sent:
    """What a client asks for.

    ``term`` is the term that it trains under, if given; ``declared`` is what its run fixes.
    """

    kind: Kind
    request: Wire
    term: int | None
    declared: Declared | None = None

    @cached_property
    def body(self) -> bytes:
        """The request as JSON, for the log and for comparison; cached for large batches."""
        return self.request.model_dump_json().encode()


@dataclass(frozen=True)
class Command:
    """What was sent under its key."""

    key: Key
    sent: Sent


@dataclass(frozen=True)
class Answer:
    """A status, a JSON body, and the digest that an optimizer step committed."""

    status: int
    body: str
    digest: str = ""
