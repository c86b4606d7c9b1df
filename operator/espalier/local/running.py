"""One pod as processes: started, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
from pathlib import Path

from espalier.local.layout import MappingError
from espalier.local.pod_process import CompanionPlan, InitPlan, ProcessPlan

GRACE_SECONDS = 20.0
# A kubelet reads this much of a log at most.
LOG_BYTES = 2048
# What runs beside a pod's process and ended is started again after so long.
COMPANION_SECONDS = 1.0
# prctl(2). Loaded before any fork.
_LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Runs in the child: it gets SIGTERM when espalier dev dies, so no trainer outlives it."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Running:
    """A process that was started for a pod."""

    def __init__(
        self, process: asyncio.subprocess.Process, planned: ProcessPlan, log: Path, begins: int
    ) -> None:
        self._process = process
        self._planned = planned
        # The log has the lines of every start of the pod; this start's begin here.
        self._log = log
        self._begins = begins
        self._first: InitPlan | None = planned.works_first
        self._stopping = False
        self._companions: list[asyncio.Task[None]] = []
        self._follows = asyncio.ensure_future(self._go_on())

    @classmethod
    async def start(cls, planned: ProcessPlan, log: Path) -> Running:
        """Does what init containers do, then starts the process and what runs beside it.

        Raises:
            MappingError: what prepares the pod failed.
        """
        for source, target in planned.copies:
            await asyncio.to_thread(shutil.copytree, source, target, dirs_exist_ok=True)
        for init in planned.prepares:
            process = await _started(init.command, init.environment, log)
            if code := await process.wait():
                raise MappingError(f"{' '.join(init.command[:3])} ended with {code}: see {log}")
        planned.message.write_text("")
        begins, first = _end_of(log), planned.works_first or planned
        process = await _started(first.command, first.environment, log)
        running = cls(process, planned, log, begins)
        for companion in planned.companions:
            running._keep(companion)
        return running

    @property
    def init_container(self) -> str:
        """The name of the container that works before the main one, as long as it does."""
        return self._first.name if self._first is not None else ""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code as a shell reports it; None while it runs."""
        code = self._process.returncode
        if code == 0 and self._first is not None:
            return None
        return code if code is None or code >= 0 else 128 - code

    @property
    def message(self) -> str:
        """Its termination message; if it failed without one, the end of its log, as a kubelet does.

        That is terminationMessagePolicy FallbackToLogsOnError, which every pod of ours has.
        """
        message = self._planned.message.read_text()
        if message or not self.code:
            return message
        size = self._log.stat().st_size
        with self._log.open("rb") as lines:
            lines.seek(max(self._begins, size - LOG_BYTES))
            return lines.read(LOG_BYTES).decode(errors="replace")

    async def stop(self) -> None:
        """Ends the process with SIGTERM, and with SIGKILL after the grace period.

        What runs beside it ends after it.
        """
        self._stopping = True
        await self._end()
        await self._follows
        # It may have been about to start.
        await self._end()
        await asyncio.gather(*self._companions)

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
            except TimeoutError:
                _kill(self._process)
                await self._process.wait()

    async def _go_on(self) -> None:
        """Starts the main process once what works before it has done so."""
        if self._first is None or await self._process.wait() or self._stopping:
            return
        self._planned.message.write_text("")
        self._begins = _end_of(self._log)
        self._process = await _started(self._planned.command, self._planned.environment, self._log)
        self._first = None

    def _keep(self, companion: CompanionPlan) -> None:
        """Runs it for as long as the pod's process, again and again."""
        self._companions.append(asyncio.ensure_future(self._kept(companion)))

    async def _kept(self, companion: CompanionPlan) -> None:
        main = asyncio.ensure_future(self._process.wait())
        while not main.done():
            one = await _started(
                companion.command, companion.environment, self._log, companion.directory
            )
            ended = asyncio.ensure_future(one.wait())
            await asyncio.wait({main, ended}, return_when=asyncio.FIRST_COMPLETED)
            _kill(one)
            await ended
            await asyncio.wait({main}, timeout=COMPANION_SECONDS)


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kills a process and its children, if it runs: asyncio tells of an end a moment later."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end_of(log: Path) -> int:
    with log.open("ab") as output:
        return output.tell()


async def _started(
    command: tuple[str, ...],
    environment: dict[str, str],
    log: Path,
    directory: Path | None = None,
) -> asyncio.subprocess.Process:
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C in the terminal must not reach the pods: espalier dev ends them in order.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
