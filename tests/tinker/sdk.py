"""Tinker's unmodified SDK and cookbook in environments of their own, as processes of users."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.user_clients import PATIENCE_SECONDS, Finished, each_version, python

# The newest and the two minor versions before it; there is no 0.37.
VERSIONS = ("0.38.0", "0.36.0", "0.35.0")
NEWEST = VERSIONS[0]
EACH_VERSION = each_version(VERSIONS)
OUTPUT, ERRORS = "output.log", "errors.log"


def environment(url: str, key: str, home: Path) -> dict[str, str]:
    """What a user of Tinker sets, nothing of this machine's configuration, and no hub."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TINKER_BASE_URL": url,
        "TINKER_API_KEY": key,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


@asynccontextmanager
async def started(
    version: str, variables: dict[str, str], *arguments: str, talks: bool = False
) -> AsyncIterator[Process]:
    """A process of the SDK's Python in the user's home; killed if it has not ended.

    It writes files, so that nobody has to read along; ``talks``: output and input are pipes.
    """
    home = Path(variables["HOME"])
    with (home / OUTPUT).open("wb") as output, (home / ERRORS).open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            str(python("tinker.sh", version)),
            *arguments,
            env=variables,
            cwd=variables["HOME"],
            stdin=PIPE if talks else DEVNULL,
            stdout=PIPE if talks else output,
            stderr=errors,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def run(version: str, variables: dict[str, str], *arguments: str) -> Finished:
    """A process until its end."""
    async with started(version, variables, *arguments) as process:
        code = await asyncio.wait_for(process.wait(), PATIENCE_SECONDS)
    home = Path(variables["HOME"])
    return Finished(code, (home / OUTPUT).read_text(), (home / ERRORS).read_text())
