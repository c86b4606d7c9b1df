"""Bounds the bytes of bodies and answers in the gateway's memory, so that no load kills it.

Each budget is a share of the container's memory; a request beyond it gets 503 and can be repeated.
Bodies and answers have separate budgets: otherwise bodies that wait for answers could block them.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from espalier.changes import Changes
from espalier.gateway.problems import RAISE_QUOTAS, counted, not_ready, over

BODIES_SHARE = 8
ANSWERS_SHARE = 4
# The memory that is assumed in a container without a limit.
UNLIMITED_BYTES = 4 * 2**30
_LIMIT = Path("/sys/fs/cgroup/memory.max")


class ByteBudget:
    """A number of bytes that holds share; ``what`` names them in messages."""

    def __init__(self, what: str, capacity: int) -> None:
        self.capacity = capacity
        self._what = what
        self._free = capacity
        self._freed = Changes()
        self._of: Counter[str] = Counter()

    def hold(self) -> Hold:
        """A hold of no bytes yet."""
        return Hold(self)

    def hold_of(self, owner: str, percent: int) -> Hold:
        """A hold of an owner, who may hold so much of the whole in all."""
        hold = Hold(self)
        hold.owned_by(owner, self.capacity * percent // 100)
        return hold

    def taken_by(self, owner: str) -> int:
        """The bytes that holds of an owner have."""
        return self._of[owner]

    async def _take(self, count: int, seconds: float, owner: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                while count > self._free:
                    if not seconds:
                        raise TimeoutError
                    await self._freed.wait()
        except TimeoutError:
            busy = not_ready(
                "GatewayBusy",
                f"the gateway holds as many bytes of {self._what} as it has memory for",
                "Send it again, or give the gateway more memory or replicas",
            )
            raise counted(busy) from None
        self._free -= count
        if owner:
            self._of[owner] += count

    def _give(self, count: int, owner: str) -> None:
        self._free += count
        if owner:
            self._of[owner] -= count
            if not self._of[owner]:
                del self._of[owner]
        self._freed.announce()


class Hold:
    """The bytes that one request holds of a budget; as a context manager it gives them back."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._taken = 0
        self._owner = ""
        self._most = budget.capacity

    @property
    def capacity(self) -> int:
        """Bytes of the whole budget."""
        return self._budget.capacity

    def owned_by(self, owner: str, most: int) -> None:
        """Counts what is taken from now on as an owner's, who may hold ``most`` bytes."""
        self._owner, self._most = owner, most

    async def take(self, count: int, seconds: float = 0.0) -> None:
        """Holds ``count`` bytes more; waits up to ``seconds`` for them.

        Raises:
            RefusalError: 503 without room, 429 if its owner holds too many. A request that is its
                owner's only one is let in at any size.
        """
        if self._is_too_much(count):
            raise over(
                "TooManyBytes",
                f"{self._owner} has requests of {self._of_others} bytes here, and may have "
                f"{self._most}",
                RAISE_QUOTAS,
            )
        await self._budget._take(count, seconds, self._owner)
        self._taken += count

    @property
    def _of_others(self) -> int:
        """The bytes that other holds of the owner have."""
        return self._budget.taken_by(self._owner) - self._taken

    def _is_too_much(self, count: int) -> bool:
        others = self._of_others
        shared = self._most < self.capacity
        return bool(shared and others and others + self._taken + count > self._most)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives back every byte of the hold."""
        self._budget._give(self._taken, self._owner)
        self._taken = 0


@dataclass(frozen=True)
class ByteBudgets:
    """The budgets of a gateway."""

    bodies: ByteBudget
    answers: ByteBudget

    @classmethod
    def of_container(cls) -> ByteBudgets:
        """Shares of the memory that the container may use."""
        memory = memory_bytes()
        return cls(
            ByteBudget("requests", memory // BODIES_SHARE),
            ByteBudget("answers", memory // ANSWERS_SHARE),
        )


def memory_bytes(limit: Path = _LIMIT) -> int:
    """The control group's limit, at most the machine's memory; without one UNLIMITED_BYTES."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(machine, UNLIMITED_BYTES if text == "max" else int(text))
