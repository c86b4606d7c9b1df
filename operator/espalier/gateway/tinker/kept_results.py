"""Room for results of samples that have ended, should the poll that they are told to be lost.

It is apart from the room for answers, so that what is kept takes nothing of what is on its way, and
nothing waits for it: a result is kept where it fits, and else it is not.
"""

from __future__ import annotations

from collections import Counter

# Of all results together; 16 answers of 1,000 tokens are 128 KiB.
KEPT_BYTES = 32 * 2**20
# A result takes so much beside its bytes, so that there are 8,192 of them at most.
RESULT_BYTES = 4096
# What the results of one caller may take of it all.
PERCENT_OF_ONE = 50


class KeptResults:
    """Counts what the kept results of each caller take."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    def take(self, owner: str, size: int) -> bool:
        """Takes the room of a result of so many bytes; False where there is none."""
        count = RESULT_BYTES + size
        own = self._of[owner] + count
        if self._of.total() + count > KEPT_BYTES or own > KEPT_BYTES * PERCENT_OF_ONE // 100:
            return False
        self._of[owner] = own
        return True

    def give(self, owner: str, size: int) -> None:
        """Gives back the room of a result that was taken."""
        self._of[owner] -= RESULT_BYTES + size
        if not self._of[owner]:
            del self._of[owner]
