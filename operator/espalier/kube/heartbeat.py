"""Detects from another thread that the event loop is blocked."""

from __future__ import annotations

import asyncio
import faulthandler

from espalier.kube import queue_metrics

BEAT_SECONDS = 1.0
# A blocked loop fails its probes as well; this is sooner, and names the line that blocks.
STUCK_SECONDS = 45.0


async def beat(stuck_seconds: float = STUCK_SECONDS) -> None:
    """Beat until cancelled. When it stops, all stacks go to stderr and the process exits with 1.

    ``faulthandler`` waits in a thread of its own, which needs neither the loop nor the GIL.
    """
    clock = asyncio.get_running_loop().time
    try:
        while True:
            faulthandler.dump_traceback_later(stuck_seconds, exit=True)
            due = clock() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            queue_metrics.LOOP_LAG.set(clock() - due)
    finally:
        faulthandler.cancel_dump_traceback_later()
