"""A real OpenEnv server in a process of its own, run by an interpreter that has the package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dev.ports import free_port

START_SECONDS = 60


@asynccontextmanager
async def serving(python: str, server: Path) -> AsyncIterator[int]:
    """Starts ``server PORT`` and waits until it listens; its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(python, str(server), str(port))
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.1)
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
