"""HUD's unmodified client in its own environment, as a process."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

from tests.user_clients import PATIENCE_SECONDS, ROOT, Finished, each_version, python

OUT = ROOT / "out" / "compat"
# The newest and the two before it.
VERSIONS = ("0.6.21", "0.6.20", "0.6.19")
NEWEST = VERSIONS[0]
EACH_VERSION = each_version(VERSIONS)
DRIVER = Path(__file__).with_name("driver.py")


def environment(url: str, token: str, home: Path) -> dict[str, str]:
    """What a user of HUD sets, and nothing of this machine's own configuration."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HUD_API_KEY": token,
        **dict.fromkeys(("HUD_RL_URL", "HUD_API_URL", "HUD_GATEWAY_URL", "HUD_WEB_URL"), url),
        "HUD_TELEMETRY_URL": f"{url}/v3/api",
        "HUD_CLI_ANALYTICS_ENABLED": "false",
        "COLUMNS": "140",
        "NO_COLOR": "1",
        "PYTHONWARNINGS": "ignore",
    }


async def run(version: str, arguments: list[str], variables: dict[str, str]) -> Finished:
    process = await asyncio.create_subprocess_exec(
        str(python("hud.sh", version)),
        *arguments,
        env=variables,
        cwd=variables["HOME"],
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    return Finished(process.returncode or 0, output.decode(), errors.decode())


async def drive(
    version: str, scenario: str, variables: dict[str, str], *, path: Path = DRIVER, **given: Any
) -> list[Any]:
    """Runs a scenario of driver.py or a script like it; what it printed, one JSON value a line."""
    said = await script(version, path, variables, scenario, json.dumps(given))
    return [json.loads(line) for line in said.splitlines()]


async def script(version: str, path: Path, variables: dict[str, str], *arguments: str) -> str:
    """What a script of HUD's users printed."""
    done = await run(version, [str(path), *arguments], variables)
    assert done.code == 0, done.errors[-3000:]
    return done.output


async def hud(version: str, variables: dict[str, str], *arguments: str) -> Finished:
    """HUD's command line."""
    return await run(version, ["-m", "hud", *arguments], variables)
