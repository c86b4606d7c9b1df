"""Keeps traces in memory while the trainer of their model is not running.

A rollout may be sampled and reported before any run trains its model, while its trainer starts, or
after it was freed. The traces are sent in their order once a trainer is running and the caller may
train with it. They live in this process's memory: a gateway that ends loses them, and training by
the id of a lost trace is refused by name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from espalier.gateway.access.auth import User
from espalier.gateway.world.world import NamespacedName

# Of all requests together; a turn of 2,000 tokens takes 50 KB.
MOST_BYTES = 64 * 2**20
# A request takes so much beside its body, so that there are 16,384 of them at most.
REQUEST_BYTES = 4096
# What the requests of one caller may take of it all.
PERCENT_OF_ONE = 50
HELD_SECONDS = 24 * 3600.0
# What becomes of a request: it is held, there is no room, or its caller has taken its share.
Put = Literal["Held", "Full", "TooMany"]


@dataclass(eq=False)
class HeldRequest:
    """A request for a trainer's ``/traces`` routes, on behalf of a user.

    ``model`` is whose trainer it is for; None: every one's that the user may train with, of which
    ``given`` have it.
    """

    user: User
    trace: str
    path: str
    body: bytes
    model: NamespacedName | None
    until: float
    given: set[NamespacedName] = field(default_factory=set)


class TraceOutbox:
    """The waiting requests, in the order of their arrival. ``clock`` is monotonic."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, most_bytes: int = MOST_BYTES
    ) -> None:
        self._clock = clock
        self._most = most_bytes
        self._items: list[HeldRequest] = []
        # One handing over at a time: turns must not overtake each other, nor arrive twice.
        self.handing_over = asyncio.Lock()
        self.task: asyncio.Task[None] | None = None

    def put(
        self, user: User, trace: str, path: str, body: bytes, model: NamespacedName | None
    ) -> Put:
        """Holds a request, or says why not."""
        self._expire()
        mine = [item for item in self._items if item.user.name == user.name]
        taken, own = _bytes(self._items), _bytes(mine)
        size = REQUEST_BYTES + len(body)
        if taken + size > self._most:
            return "Full"
        if own + size > self._most * PERCENT_OF_ONE // 100:
            return "TooMany"
        until = self._clock() + HELD_SECONDS
        self._items.append(
            HeldRequest(user, trace, path, body, model or self.model_of(trace), until)
        )
        return "Held"

    def model_of(self, trace: str) -> NamespacedName | None:
        """The model that a waiting trace was sampled from, if that is known."""
        return next((i.model for i in self._items if i.trace == trace and i.model), None)

    def waiting(self, model: NamespacedName) -> list[HeldRequest]:
        """What a model's trainer has not got."""
        self._expire()
        return [i for i in self._items if i.model in (model, None) and model not in i.given]

    def give(self, item: HeldRequest, model: NamespacedName) -> None:
        """The model's trainer has it now. What is for no model in particular stays for others."""
        item.given.add(model)
        if item.model is not None:
            self._items.remove(item)

    def __len__(self) -> int:
        return len(self._items)

    def _expire(self) -> None:
        now = self._clock()
        self._items = [item for item in self._items if item.until > now]


def _bytes(items: Sequence[HeldRequest]) -> int:
    """What requests take of the room."""
    return sum(REQUEST_BYTES + len(item.body) for item in items)
