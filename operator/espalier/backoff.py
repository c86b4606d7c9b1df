"""How long to wait before the next attempt of something that failed. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Seconds to wait after the n-th failure in a row: ``first * 2**(n-1)`` up to ``cap``."""

    first: float = 0.2
    cap: float = 60.0
    jitter: float = 0.2

    def delay(self, failures: int, chance: float = 0.0) -> float:
        """The delay after this many failures (1 or more); ``chance`` in [0, 1) shortens it."""
        # The exponent is bounded only to keep the power finite: the cap is reached long before.
        base = min(self.cap, self.first * 2.0 ** min(failures - 1, 30))
        return base * (1 - self.jitter * chance)
