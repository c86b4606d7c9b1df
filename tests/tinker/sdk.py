"""Tinker's unmodified SDK and cookbook in environments of their own, as processes of users."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The newest and the two minor versions before it; there is no 0.37.
VERSIONS = ("0.38.0", "0.36.0", "0.35.0")
NEWEST = VERSIONS[0]
EACH_VERSION = [
    pytest.param(version, marks=[] if version == NEWEST else pytest.mark.exhaustive)
    for version in VERSIONS
]
INSTALL_SECONDS = 900
# A client imports for seconds, and this machine may be busy.
PATIENCE_SECONDS = 500


@functools.cache
def python(version: str) -> Path:
    """The interpreter of a version's environment, made if it is not there."""
    done = subprocess.run(
        [str(ROOT / "dev" / "tinker.sh"), version],
        stdout=subprocess.PIPE,
        text=True,
        timeout=INSTALL_SECONDS,
        check=True,
    )
    return Path(done.stdout.strip())


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


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    code: int
    output: str
    errors: str


@asynccontextmanager
async def started(
    version: str, variables: dict[str, str], *arguments: str
) -> AsyncIterator[Process]:
    """A process of the SDK's Python in the user's home; killed if it has not ended."""
    process = await asyncio.create_subprocess_exec(
        str(python(version)),
        *arguments,
        env=variables,
        cwd=variables["HOME"],
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: Process) -> Finished:
    """What a process that ends by itself said."""
    output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode is not None
    return Finished(process.returncode, output.decode(), errors.decode())


async def run(version: str, variables: dict[str, str], *arguments: str) -> Finished:
    """A process until its end."""
    async with started(version, variables, *arguments) as process:
        return await ended(process)
