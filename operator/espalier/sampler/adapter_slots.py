"""Which adapters may be begun where callers ask for more of them than an engine has slots.

vLLM samples ``maxAdapters`` adapters side by side. It passes over a request for another one,
whatever its number, until of one of them no answer runs: whoever keeps as many busy would keep out
everybody else's. So of what was passed over, a free slot is for the caller who uses the fewest.
And where others use more than that caller, one slot of theirs takes nothing more until it is free,
which takes as long as its longest answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Need(NamedTuple):
    """What a request needs a slot for; its turn is its number, then when it came."""

    number: int
    arrival: float
    caller: str
    adapter: int


class AdapterSlots:
    """The slots of an engine, ``count`` of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._begun = 0
        self._draining: int | None = None

    def closed(self, running: Iterable[Need], waiting: Iterable[Need], begun: int) -> set[int]:
        """The adapters of which nothing may begin now.

        Args:
            running: what runs with an adapter, in the order in which it began.
            waiting: what waits for one, in any order.
            begun: the highest number of what runs, with or without an adapter.
        """
        users = _users(running)
        used = Counter(caller for callers in users.values() for caller in callers)
        wanted = [need for need in waiting if need.adapter not in users]
        # Whoever's turn has not come gets no slot yet: it would be idle until then. What began with
        # a later turn may have ended since.
        self._begun = max(self._begun, begun)
        passed = sorted(need for need in wanted if need.number <= self._begun)
        given = set[int]()
        while passed and len(users) + len(given) < self.count:
            first = _neediest(passed, used)
            given.add(first.adapter)
            used[first.caller] += 1
            passed = [need for need in passed if need.adapter not in given]
        if not passed:
            self._draining = None
            return set()
        self._draining = self._to_drain(users, used, than=used[_neediest(passed, used).caller])
        closed = {need.adapter for need in wanted if need.adapter not in given}
        return closed if self._draining is None else closed | {self._draining}

    def _to_drain(self, users: dict[int, set[str]], used: Counter[str], than: int) -> int | None:
        """An adapter all of whose users use more slots ``than`` that; the same until it is free."""
        least = {adapter: min(used[c] for c in callers) for adapter, callers in users.items()}
        more = [adapter for adapter in users if least[adapter] > than]
        if self._draining in more:
            return self._draining
        # Of the caller with the most, the one that is likely to be free first.
        return max(more, key=least.__getitem__, default=None)


def _users(running: Iterable[Need]) -> dict[int, set[str]]:
    """Who uses each slot; first the one whose last answer has run for the longest."""
    users: dict[int, set[str]] = {}
    for need in running:
        users[need.adapter] = users.pop(need.adapter, set()) | {need.caller}
    return users


def _neediest(passed: list[Need], used: Counter[str]) -> Need:
    """Of the caller who uses the fewest slots; of several what comes first."""
    return min(passed, key=lambda need: used[need.caller])
