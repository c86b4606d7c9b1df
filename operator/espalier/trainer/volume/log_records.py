"""What the command log holds of a command, and of where training stands."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from espalier.api.wire.trainer import Assignment

Kind = Literal[
    "forward-backward",
    "forward",
    "backward",
    "zero-grad",
    "optim-step",
    "tinker-forward-backward",
    "save-weights",
    "load-weights",
]
TINKER_GRADIENTS: Kind = "tinker-forward-backward"
# Kind of the entry for a number that never came.
GAP = "gap"


@dataclass(frozen=True)
class Key:
    """An idempotency key: a client's session and the command's number in it."""

    session: str
    seq: int


@dataclass(frozen=True)
class Record:
    """A command as logged; ``status`` is None until it is finished.

    ``cuts`` is how its batch was cut into rows, as JSON; a replay with the same cuts gives the same
    sums. ``body`` names the file of its body, if it came by the inbox.
    """

    number: int
    key: Key
    kind: str
    digest: str
    status: int | None
    answer: str
    checkpoint: str
    cuts: str
    body: str = ""

    def is_for(self, kind: Kind, body: bytes) -> bool:
        """Whether it is the same command as one of this kind and body."""
        return (self.kind, self.digest) == (kind, hashlib.sha256(body).hexdigest())


@dataclass(frozen=True)
class Assigned:
    """The assignment in force; commits numbered above ``since`` were made under its term."""

    assignment: Assignment
    since: int


@dataclass(frozen=True)
class Loaded:
    """The checkpoint whose weights were loaded since the last step, with Adam's state or not."""

    digest: str
    optimizer: bool
