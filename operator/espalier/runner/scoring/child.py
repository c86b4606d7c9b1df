"""A child of the worker: scores a batch of answers and ends. What it scores may take it over."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from espalier.runner.scoring.confinement import Confinement
from espalier.runner.scoring.protocol import Request
from espalier.runner.scoring.scorers import Scorer

# The only file that a child has beside its standard ones, which lead nowhere.
_ANSWERS = 3
_FIRST_CLOSED = 4
# Some systems set no limit.
_MOST_FILES = 1 << 20
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Walls:
    """What holds every child: the confinement, seconds and bytes of address space, its parent."""

    confinement: Confinement
    seconds: int
    address_bytes: int
    worker: int


def run(
    scorer: Scorer, batch: Sequence[Request], walls: Walls, *, answers: int, nowhere: int
) -> None:
    """Scores in order, a line for each, and ends the process.

    Args:
        scorer: made by the worker.
        batch: what to score.
        walls: what to hide behind first.
        answers: file descriptor to write to.
        nowhere: file descriptor of the null device.
    """
    try:
        _leave_behind(answers, nowhere)
        if sys.platform == "linux":
            _end_with(walls.worker)
        # Each score has its seconds of the clock, which the worker counts.
        seconds = walls.seconds * len(batch) + 1
        walls.confinement.enter(seconds=seconds, address_bytes=walls.address_bytes)
        for request in batch:
            line = json.dumps(_scored(scorer, request)) + "\n"
            os.write(_ANSWERS, line.encode())
    finally:
        os._exit(0)


def _scored(scorer: Scorer, request: Request) -> dict[str, object]:
    try:
        return _number(scorer.score(request.reference, request.completion))
    except MemoryError:
        return {"Memory": "the scorer wanted more memory than it may have"}
    # An answer that is evaluated may raise whatever it likes, SystemExit among it.
    except BaseException as error:
        return {"Raised": _words(error)}


def _number(given: object) -> dict[str, object]:
    # What float() takes as well, such as "1" and True, is no reward but a mistake.
    if isinstance(given, bool) or not isinstance(given, Real):
        return {"Malformed": f"the reward is no number, but a {type(given).__name__}"[:1000]}
    return {"reward": float(given)}


def _words(error: BaseException) -> str:
    # What was raised may be a class of the answer's own, with a __str__ of its own.
    with contextlib.suppress(BaseException):
        return f"{type(error).__name__}: {error}"[:1000]
    return "an exception that cannot be printed"


def _leave_behind(answers: int, nowhere: int) -> None:
    """Files, signal handlers and the process group of the worker."""
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.dup2(answers, _ANSWERS)
    os.closerange(_FIRST_CLOSED, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MOST_FILES))


def _end_with(worker: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before it was to be heard of.
    if os.getppid() != worker:
        os._exit(1)
