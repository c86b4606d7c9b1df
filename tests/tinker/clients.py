"""Tinker's unmodified client in its own environment, as a process."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEWEST = "0.38.0"
DRIVER = Path(__file__).with_name("driver.py")
INSTALL_SECONDS = 600
# A client imports for seconds, and this machine may be busy.
PATIENCE_SECONDS = 700


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
    return Path(done.stdout.strip().splitlines()[-1])


async def drive(url: str, key: str, home: Path, scenario: str, **given: Any) -> dict[str, Any]:
    """Runs a scenario of driver.py; what it told, by name."""
    process = await asyncio.create_subprocess_exec(
        str(python(NEWEST)),
        str(DRIVER),
        scenario,
        json.dumps(given),
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TINKER_BASE_URL": url,
            "TINKER_API_KEY": key,
            "PYTHONWARNINGS": "ignore",
        },
        cwd=home,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()[-4000:]
    told: dict[str, Any] = {}
    for line in output.decode().splitlines():
        told |= json.loads(line)
    return told
