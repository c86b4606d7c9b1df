"""A user's module: say the digit twice. The first rollout of all takes its process with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

DIED = Path("/tmp/died")
SECRETS = Path("/var/run/secrets")


def tasks(seed: int, size: int) -> list[dict[str, Any]]:
    return [{"id": f"digit-{n}", "prompt": f"{n % 10}=", "digit": str(n % 10)} for n in range(size)]


def look_around() -> None:
    if SECRETS.exists() or any("TOKEN" in name for name in os.environ):
        raise RuntimeError("it is given a token")
    if not DIED.exists():
        DIED.touch()
        os._exit(3)


async def rollout(task: dict[str, Any], session: Any) -> float:
    look_around()
    turns = [await session.say(task["prompt"]) for _ in range(2)]
    session.stop("done")
    return sum(task["digit"] in turn.text for turn in turns) / 2
