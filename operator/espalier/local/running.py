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
# Of a container that cannot be started, as containerd has it (StartError).
CANNOT_START = 128
# prctl(2). Loaded before any fork.
_LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Runs in the child: it gets SIGTERM when espalier dev dies, so no trainer outlives it."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Running:
    """A process that was started for a pod, or could not be, and has ended by that."""

    def __init__(self, planned: ProcessPlan, log: Path) -> None:
        self._planned = planned
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        # The log has the lines of every start of the pod; this start's begin here.
        self._begins = 0
        self._unstarted = ""
        self._first: InitPlan | None = planned.works_first
        self._stopping = False
        self._companions: list[asyncio.Task[None]] = []
        self._follows: asyncio.Future[None] | None = None

    @classmethod
    async def start(cls, planned: ProcessPlan, log: Path) -> Running:
        """Does what init containers do, then starts the process and what runs beside it.

        Raises:
            MappingError: what prepares the pod failed.
        """
        try:
            for source, target in planned.copies:
                await asyncio.to_thread(shutil.copytree, source, target, dirs_exist_ok=True)
        except OSError as error:
            raise MappingError(f"a model's files cannot be copied: {error}") from error
        for init in planned.prepares:
            process = await _started(init.command, init.environment, log)
            if code := await process.wait():
                raise MappingError(f"{_named(init.command)} ended with {code}: see {log}")
        running = cls(planned, log)
        await running._begin(planned.works_first or planned)
        running._follows = asyncio.ensure_future(running._go_on())
        for companion in planned.companions:
            running._keep(companion)
        return running

    async def _begin(self, step: InitPlan | ProcessPlan) -> None:
        """Starts what works first or the main process; one that cannot be has ended."""
        self._planned.message.write_text("")
        self._begins = _end_of(self._log)
        try:
            self._process = await _started(step.command, step.environment, self._log)
        except MappingError as error:
            self._unstarted = str(error)

    @property
    def init_container(self) -> str:
        """The name of the container that works before the main one, as long as it does."""
        return self._first.name if self._first is not None else ""

    @property
    def pid(self) -> int:
        """Of the process; 0 where it could not be started."""
        return self._process.pid if self._process else 0

    @property
    def code(self) -> int | None:
        """Exit code as a shell reports it; None while it runs."""
        if self._unstarted or self._process is None:
            return CANNOT_START
        code = self._process.returncode
        if code == 0 and self._first is not None:
            return None
        return code if code is None or code >= 0 else 128 - code

    @property
    def message(self) -> str:
        """Its termination message; if it failed without one, the end of its log, as a kubelet does.

        That is terminationMessagePolicy FallbackToLogsOnError, which every pod of ours has.
        """
        message = self._unstarted or self._planned.message.read_text()
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
        if self._follows is not None:
            await self._follows
        # It may have been about to start.
        await self._end()
        await asyncio.gather(*self._companions)

    async def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
            except TimeoutError:
                _kill(self._process)
                await self._process.wait()

    async def _go_on(self) -> None:
        """Starts the main process once what works before it has done so."""
        if self._first is None or self._process is None:
            return
        if await self._process.wait() or self._stopping:
            return
        await self._begin(self._planned)
        self._first = None

    def _keep(self, companion: CompanionPlan) -> None:
        """Runs it for as long as the pod's process, again and again."""
        self._companions.append(asyncio.ensure_future(self._kept(companion)))

    async def _kept(self, companion: CompanionPlan) -> None:
        if self._process is None:
            return
        main = asyncio.ensure_future(self._process.wait())
        while not main.done():
            try:
                one = await _started(
                    companion.command, companion.environment, self._log, companion.directory
                )
            except MappingError as error:
                with self._log.open("a") as log:
                    log.write(f"{error}\n")
            else:
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


def _named(command: tuple[str, ...]) -> str:
    """A command as a message names it: its beginning, without the lines of a script."""
    return " ".join(part.partition("\n")[0] for part in command[:3])


def _end_of(log: Path) -> int:
    with log.open("ab") as output:
        return output.tell()


async def _started(
    command: tuple[str, ...],
    environment: dict[str, str],
    log: Path,
    directory: Path | None = None,
) -> asyncio.subprocess.Process:
    """A process of a pod; raises MappingError where there is no such program or directory."""
    with log.open("ab") as output:
        try:
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
        except OSError as error:
            raise MappingError(f"{_named(command)} cannot be started: {error}") from error
