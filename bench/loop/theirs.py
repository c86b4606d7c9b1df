"""TRL's side (``trl_side``) as seen from this process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from bench.loop.setting import Setting

SCRIPT = Path(__file__).parents[1] / "trainer" / "trl_environment.sh"


class Theirs:
    """A process in TRL's environment that takes steps when it is told."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self._folder = folder
        self._process = process

    @classmethod
    async def start(cls, setting: Setting, folder: Path) -> Self:
        """Returns when the process runs; it loads the model before its first step."""
        await asyncio.to_thread(folder.mkdir, parents=True)
        asked = await asyncio.to_thread(subprocess.check_output, [str(SCRIPT)], text=True)
        with await asyncio.to_thread((folder / "log").open, "wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(asked.splitlines()[-1], "-W", "ignore", "-m", "bench.loop.trl_side"),
                *(setting.written(), str(folder)),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        return cls(folder, process)

    async def piece(self, steps: int) -> dict[str, Any]:
        """Takes so many steps more: wall-clock and CPU seconds, and by phase."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n".encode())
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit(f"TRL ended: see {self._folder / 'log'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def name(self, step: int) -> str:
        """Of the adapter after a step that ended a piece."""
        return str(step)

    async def adapter(self, name: str) -> Path:
        """The directory of an adapter."""
        return self._folder / name

    async def close(self) -> None:
        """Ends the process."""
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
