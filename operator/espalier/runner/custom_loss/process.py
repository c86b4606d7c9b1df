"""The process of a loss as the runner sees it: one call, bounded in time and in what it says."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence

from pydantic import TypeAdapter

from espalier.loop.custom_loss import LossDatum
from espalier.rewards.failure import Failure
from espalier.runner.custom_loss.protocol import READY, Answer, Failed, Found
from espalier.runner.run_end import WaitError
from espalier.runner.scorer_spec import Line
from espalier.runner.scoring.process import Patience, kill, spawned
from espalier.runner.scoring.protocol import death

COMMAND = (sys.executable, "-P", "-W", "ignore", "-m", "espalier.runner.custom_loss.child")
# What it may take beside Python, its libraries and the batch.
MEMORY_BYTES = 1 << 30
_READ_BYTES = 1 << 20
# Of an answer: a number takes at most 25 with its comma; the rest is names and words.
_BYTES_A_TOKEN, _BYTES_MORE = 32, 1 << 16
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


class Call(Line):
    """A loss and what it is given. ``file`` is the module's name in tracebacks."""

    source: str
    file: str
    function: str
    seconds: int
    memory_bytes: int = MEMORY_BYTES
    data: list[LossDatum]


async def asked(
    call: Call, *, command: Sequence[str] = COMMAND, patience: Patience | None = None
) -> Found | Failure:
    """What the loss and its gradient are, or why they could not be had.

    Raises:
        WaitError: the process did not start.
    """
    patience = patience or Patience()
    content = await asyncio.to_thread(lambda: call.model_dump_json().encode())
    process = await spawned(command)
    try:
        await _started(process, content, patience.start)
        said = await _said(process, call)
    finally:
        await kill(process, patience.end)
    return said if isinstance(said, Failure) else await asyncio.to_thread(_read, said, call)


async def _started(process: asyncio.subprocess.Process, content: bytes, seconds: float) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    said = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            # One that ended already is told by the end of what it says.
            with contextlib.suppress(ConnectionError):
                process.stdin.write(content)
                await process.stdin.drain()
                process.stdin.close()
            said = await process.stdout.readline()
    if said != READY:
        detail = "the process of the loss did not start; what it wrote to stderr is in this log"
        raise WaitError("LossNotReady", seconds, detail)


async def _said(process: asyncio.subprocess.Process, call: Call) -> bytes | Failure:
    """All that it says until it ends."""
    assert process.stdout is not None
    most = _BYTES_MORE + _BYTES_A_TOKEN * sum(len(datum.logprobs) for datum in call.data)
    said = bytearray()
    try:
        async with asyncio.timeout(call.seconds):
            while block := await process.stdout.read(_READ_BYTES):
                said += block
                if len(said) > most:
                    return Failure.of("Malformed", "its process said more than an answer can be")
            code = await process.wait()
    except TimeoutError:
        return Failure.of("Timeout", f"no loss within {call.seconds} s")
    return bytes(said) if said else death(code)


def _read(said: bytes, call: Call) -> Found | Failure:
    """The answer, of which nothing is believed: the module may have written it itself."""
    try:
        answer = _ANSWER.validate_json(said)
    except ValueError:
        return Failure.of("Malformed", "its process answered something else than a loss")
    if isinstance(answer, Failed):
        return Failure.of(answer.failure.cause, answer.failure.detail)
    if [len(row) for row in answer.gradient] != [len(datum.logprobs) for datum in call.data]:
        return Failure.of("Malformed", "its process answered with a gradient of another shape")
    return answer
