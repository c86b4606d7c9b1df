"""Scenarios of driver.py, run by the newest SDK."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tinker.sdk import NEWEST, environment, run

DRIVER = Path(__file__).with_name("driver.py")


async def drive(url: str, key: str, home: Path, scenario: str, **given: Any) -> dict[str, Any]:
    """What a scenario told, by name."""
    variables = environment(url, key, home)
    done = await run(NEWEST, variables, str(DRIVER), scenario, json.dumps(given))
    assert done.code == 0, done.errors[-4000:]
    told: dict[str, Any] = {}
    for line in done.output.splitlines():
        told |= json.loads(line)
    return told
