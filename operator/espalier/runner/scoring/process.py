"""The worker as the runner sees it: a process that takes requests and answers them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from espalier.runner.scorer_spec import Reference
from espalier.runner.scoring.protocol import Answer, Opening, Ready, Request

COMMAND = (sys.executable, "-P", "-W", "ignore", "-m", "espalier.runner.scoring.worker")
_LINE_BYTES = 1 << 20
# asyncio's own.
_USUAL_BYTES = 1 << 16


@dataclass(frozen=True)
class Patience:
    """Seconds that a worker may take.

    Attributes:
        start: to open its scorer; importing a dataset takes seconds of CPU time.
        silence: beyond the time of a score, while it owes an answer and gives none.
        end: to be gone after it was killed.
    """

    start: float = 180.0
    silence: float = 30.0
    end: float = 10.0


class WorkerLostError(Exception):
    """The worker ended, or was ended for its silence, and owed an answer."""


@dataclass
class Process:
    """A worker that is ready. Made by ``start``."""

    process: asyncio.subprocess.Process
    ready: Ready
    silence: float
    end: float
    _owed: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    _heard: float = 0.0
    _number: int = 0
    _reader: asyncio.Task[None] | None = None
    lost: str = ""

    @classmethod
    async def start(cls, opening: Opening, command: Sequence[str], patience: Patience) -> Process:
        """Starts a worker and waits until it is ready.

        Raises:
            WorkerLostError: it ended or took longer than ``patience.start``.
        """
        process = await spawned(command, _LINE_BYTES)
        try:
            async with asyncio.timeout(patience.start):
                ready = await _opened(process, opening)
        except TimeoutError as error:
            await kill(process, patience.end)
            why = f"the scoring worker was not ready within {patience.start:.0f} s"
            raise WorkerLostError(why) from error
        except BaseException:
            await kill(process, patience.end)
            raise
        made = cls(process, ready, opening.seconds + patience.silence, patience.end)
        made._reader = asyncio.ensure_future(made._read())
        return made

    async def ask(self, reference: Reference, completion: str) -> Answer:
        """The worker's answer to one request.

        Raises:
            WorkerLostError: the worker is gone, or went before it answered.
        """
        if self.lost:
            raise WorkerLostError(self.lost)
        assert self.process.stdin is not None
        self._number += 1
        number = self._number
        # What no encoding can hold, no scorer can read.
        text = completion.encode(errors="replace").decode()
        request = Request(id=number, reference=reference, completion=text)
        if not self._owed:
            self._heard = _clock()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._owed[number] = future
        try:
            self.process.stdin.write(request.model_dump_json().encode() + b"\n")
            # A worker that went away is told by the future.
            with contextlib.suppress(ConnectionError):
                await self.process.stdin.drain()
            return await future
        finally:
            self._owed.pop(number, None)

    async def stop(self) -> None:
        """Kills it with everything that it started."""
        if self._reader is not None:
            self._reader.cancel()
        self._lose("the scoring worker was stopped")
        await kill(self.process, self.end)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while True:
            try:
                async with asyncio.timeout(self._left()):
                    line = await self.process.stdout.readline()
                if not line:
                    break
                answer = Answer.model_validate_json(line)
            except TimeoutError:
                if self._left() > 0:
                    continue
                self._lose(f"the scoring worker gave no answer for {self.silence:.0f} s")
                return await kill(self.process, self.end)
            except ValueError:
                self._lose("the scoring worker wrote what is no answer")
                return await kill(self.process, self.end)
            self._heard = _clock()
            future = self._owed.get(answer.id)
            if future is not None and not future.done():
                future.set_result(answer)
        code = await self.process.wait()
        self._lose(f"the scoring worker ended with code {code}")
        return None

    def _left(self) -> float:
        """Seconds until it has been silent for too long; nothing is owed: a full span."""
        return self._heard + self.silence - _clock() if self._owed else self.silence

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why
        for future in self._owed.values():
            if not future.done():
                future.set_exception(WorkerLostError(why))


async def _opened(process: asyncio.subprocess.Process, opening: Opening) -> Ready:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(opening.model_dump_json().encode() + b"\n")
    # One that ended already is told by the end of what it says.
    with contextlib.suppress(ConnectionError):
        await process.stdin.drain()
    line = await process.stdout.readline()
    try:
        return Ready.model_validate_json(line)
    except ValueError as error:
        code = await process.wait() if not line else "none"
        why = f"ended before it was ready, code {code}; what it wrote to stderr is in this log"
        raise WorkerLostError(f"the scoring worker {why}") from error


async def spawned(
    command: Sequence[str], line_bytes: int = _USUAL_BYTES
) -> asyncio.subprocess.Process:
    """A process in a group of its own that runs a user's code, spoken to by its pipes.

    ``line_bytes``: the most of a line that it may write.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        env=_environment(),
        # Of no directory that anybody works in.
        cwd="/",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=line_bytes,
        start_new_session=True,
    )


async def kill(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Kills a process with its group; TimeoutError after ``seconds``."""
    # Its children are in groups of their own and end with it, by the kernel or by themselves.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    async with asyncio.timeout(seconds):
        await process.wait()


def _environment() -> dict[str, str]:
    """Of such a process: where packages are, and the seed that makes tasks the same."""
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
        "HOME": "/nonexistent",
        # A child has no threads.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _clock() -> float:
    return asyncio.get_running_loop().time()
