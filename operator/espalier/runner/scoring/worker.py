"""``python -m espalier.runner.scoring.worker``: opens a scorer and forks children that score.

It passes answers on and never reads what is in them. Its own files are lines of JSON on standard
input and output (``wire``); it ends when its input does.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic_core import from_json

from espalier.rewards.failure import Failure
from espalier.rewards.number import Range
from espalier.runner.scorer_spec import Spec
from espalier.runner.scoring import child
from espalier.runner.scoring.confinement import Confinement, address_bytes, follow_parent
from espalier.runner.scoring.protocol import Answer, Opening, Ready, Request, death, judged
from espalier.runner.scoring.scorers import Scorer, open_scorer

# Answers that one child takes where none of them is evaluated: a fork costs as much as many scores.
_BATCH = 64
_READ_BYTES = 1 << 20
# More than any honest child says of a batch.
_MOST_SAID_BYTES = 1 << 20


@dataclass
class _Child:
    pid: int
    answers: int
    batch: deque[Request]
    deadline: float
    said: bytearray = field(default_factory=bytearray)
    total: int = 0


class Worker:
    """The loop of the worker.

    Args:
        scorer: which scores.
        opening: limits.
        confinement: what children hide behind.
        channel: file descriptors of the runner's requests and of the answers to it.
    """

    def __init__(
        self, scorer: Scorer, opening: Opening, confinement: Confinement, channel: tuple[int, int]
    ) -> None:
        self._scorer = scorer
        self._seconds = opening.seconds
        self._children = opening.children
        self._allowed = Range(opening.minimum, opening.maximum)
        space = address_bytes() + opening.memory_bytes
        self._walls = child.Walls(confinement, opening.seconds, space, os.getpid())
        self._requests, self._out = channel
        self._nowhere = os.open(os.devnull, os.O_RDWR)
        self._heard = bytearray()
        self._waiting: deque[Request] = deque()
        self._running: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._requests, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the runner closes its end; children that still run are killed then."""
        # What lies in memory by now is never collected, so that children share it.
        gc.collect()
        gc.freeze()
        try:
            while self._turn():
                pass
        finally:
            for running in [*self._running.values()]:
                self._end(running)

    def _turn(self) -> bool:
        soonest = min((one.deadline for one in self._running.values()), default=None)
        timeout = None if soonest is None else max(soonest - time.monotonic(), 0.0)
        for key, _ in self._selector.select(timeout):
            if key.fd != self._requests:
                self._listen(self._running[key.fd])
            elif not self._take_in():
                return False
        for late in [one for one in self._running.values() if one.deadline <= time.monotonic()]:
            self._settle(late, Failure.of("Timeout", f"no score within {self._seconds} s"))
            self._put_back(late)
        while self._waiting and len(self._running) < self._children:
            self._fork()
        return True

    def _take_in(self) -> bool:
        block = os.read(self._requests, _READ_BYTES)
        self._heard += block
        *lines, rest = self._heard.split(b"\n")
        self._heard = bytearray(rest)
        self._waiting += [Request.model_validate_json(line) for line in lines]
        return bool(block)

    def _fork(self) -> None:
        most = 1 if self._scorer.evaluates else _BATCH
        batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        for request in batch:
            self._scorer.prepare(request.reference)
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            child.run(self._scorer, batch, self._walls, answers=writing, nowhere=self._nowhere)
        os.close(writing)
        deadline = time.monotonic() + self._seconds
        self._running[reading] = _Child(pid, reading, deque(batch), deadline)
        self._selector.register(reading, selectors.EVENT_READ)

    def _listen(self, running: _Child) -> None:
        block = os.read(running.answers, _READ_BYTES)
        running.said += block
        running.total += len(block)
        *lines, rest = running.said.split(b"\n")
        running.said = bytearray(rest)
        for line in lines:
            if not running.batch:
                break
            self._settle(running, _read(bytes(line), self._allowed))
        if running.batch and running.total > _MOST_SAID_BYTES:
            self._settle(running, Failure.of("Malformed", "its process said too much"))
            self._put_back(running)
        elif running.batch and not block:
            self._settle(running, death(os.waitstatus_to_exitcode(self._end(running))))
            self._put_back(running)
        elif not running.batch:
            self._end(running)

    def _settle(self, running: _Child, result: float | Failure) -> None:
        """Answers the first of the batch that has no answer yet; the next has its time anew."""
        request = running.batch.popleft()
        running.deadline = time.monotonic() + self._seconds
        if isinstance(result, Failure):
            self._say(Answer(id=request.id, failure=result))
        else:
            self._say(Answer(id=request.id, reward=result))

    def _put_back(self, running: _Child) -> None:
        """Ends a child that cannot go on; the others of its batch get another one."""
        self._end(running)
        self._waiting.extendleft(reversed(running.batch))
        running.batch.clear()

    def _end(self, running: _Child) -> int:
        """Kills the child with its process group; its wait status."""
        if self._running.pop(running.answers, None) is None:
            return 0
        self._selector.unregister(running.answers)
        os.close(running.answers)
        # The group is the child's once it has begun; before that, the child alone is there.
        for end in (os.killpg, os.kill):
            try:
                end(running.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return os.waitpid(running.pid, 0)[1]

    def _say(self, answer: Answer) -> None:
        say(self._out, answer.model_dump_json())


def say(out: int, text: str) -> None:
    """Writes a line whole."""
    rest = memoryview(text.encode() + b"\n")
    while rest:
        rest = rest[os.write(out, rest) :]


def _read(line: bytes, allowed: Range) -> float | Failure:
    try:
        return judged(from_json(line), allowed)
    except ValueError:
        return judged(None, allowed)


def _channel() -> tuple[int, int]:
    """Requests and answers; what anything prints from here on goes nowhere."""
    requests, out = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return requests, out


def main(opens: Callable[[Spec], Scorer] = open_scorer) -> None:
    """Opens what the first line names, says what confines it, and serves."""
    follow_parent()
    requests, out = _channel()
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(requests, 1)
        if not byte:
            return
        line += byte
    opening = Opening.model_validate_json(bytes(line))
    confinement = Confinement.offered()
    worker = Worker(opens(opening.scorer), opening, confinement, (requests, out))
    confinement.hide_files()
    ready = Ready(landlock=confinement.landlock, seccomp=confinement.seccomp)
    say(out, ready.model_dump_json())
    worker.serve()


if __name__ == "__main__":
    main()
