"""Counts rollouts while they go on, and once they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from espalier.runner import prometheus


@contextmanager
def in_flight(rollouts: int) -> Iterator[None]:
    """So many rollouts go on within."""
    prometheus.IN_FLIGHT.inc(rollouts)
    try:
        yield
    finally:
        prometheus.IN_FLIGHT.dec(rollouts)
        prometheus.ROLLOUTS.inc(rollouts)
