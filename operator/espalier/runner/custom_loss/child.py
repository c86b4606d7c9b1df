"""``python -m espalier.runner.custom_loss.child``: calls one loss, differentiates it, and ends.

It reads a Call from standard input, hides, and writes an Answer. The user's module runs in this
process alone, which has no network, token, files and children by then.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import autograd.numpy as np
from autograd import make_vjp
from autograd.tracer import getval, isbox
from pydantic_core import from_json

from espalier.rewards import module
from espalier.runner.custom_loss.protocol import METRIC_PATTERN, METRICS_MOST, OWN_METRICS, READY
from espalier.runner.scoring.confinement import Confinement, address_bytes, follow_parent

# The only file that is left beside the standard ones, which lead nowhere.
_ANSWER = 3
_MOST_FILES = 1 << 20
_RETURNS = "return the loss, or (loss, metrics)"


class LossError(Exception):
    """What the function gave is no loss; ``cause`` as of a reward's Failure."""

    def __init__(self, detail: str, cause: str = "Malformed") -> None:
        super().__init__(detail)
        self.cause = cause


def differentiated(call: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Found.

    Raises:
        LossError: the function gave no loss of the log-probs.
        BaseException: whatever the user's module raises.
    """
    rows = call["data"]
    ends = np.cumsum([0, *(len(row["logprobs"]) for row in rows)])
    bounds = [(int(start), int(stop)) for start, stop in pairwise(ends)]
    data = [_sample(row) for row in rows]
    flat = np.concatenate([row.logprobs for row in data])
    metrics: dict[str, float] = {}
    function = vars(module.loaded(module.compiled(call["source"], call["file"])))[call["function"]]

    def loss_of(logprobs: Any) -> Any:
        given = function(data, [logprobs[start:stop] for start, stop in bounds])
        loss, told = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
        _check(loss)
        metrics.update(_metrics(told))
        return loss

    differentiate, value = make_vjp(loss_of)(flat)
    slope = differentiate(np.ones_like(value))
    gradient = [
        np.where(row.mask == 0, 0.0, slope[a:b]) for row, (a, b) in zip(data, bounds, strict=True)
    ]
    _check_finite(gradient)
    loss = float(np.reshape(value, ()))
    return {"loss": loss, "gradient": [row.tolist() for row in gradient], "metrics": metrics}


def _sample(row: dict[str, Any]) -> SimpleNamespace:
    """The fields of a LossDatum, lists as arrays; the last one is there under a reference alone."""
    fields = {"reference_logprobs": None, **row}
    return SimpleNamespace(
        **{
            name: np.array(value, dtype=float) if isinstance(value, list) else value
            for name, value in fields.items()
        }
    )


def _check(loss: Any) -> None:
    if loss is None:
        raise LossError(f"it returned None: {_RETURNS}")
    value = np.asarray(getval(loss))
    if value.dtype.kind not in "fiu":
        raise LossError(f"it returned a {type(loss).__name__}, which is no number: {_RETURNS}")
    if value.size != 1:
        raise LossError(f"the loss has the shape {value.shape}: add it up to one number")
    if not np.isfinite(value).all():
        raise LossError(f"the loss is {value.item()}", "NotFinite")
    if not isbox(loss):
        raise LossError(
            "the loss does not depend on the logprobs that it was given: compute it "
            "from them, with autograd.numpy and without float()"
        )


def _metrics(told: Any) -> dict[str, float]:
    if not isinstance(told, dict) or len(told) > METRICS_MOST:
        raise LossError(f"its metrics are no dict of at most {METRICS_MOST} numbers")
    found = {}
    for name, value in told.items():
        if not isinstance(name, str) or not re.fullmatch(METRIC_PATTERN, name):
            raise LossError(f"a metric is named {name!r}: use lower-case letters, digits and '_'")
        if name in OWN_METRICS:
            raise LossError(f"a metric is named {name!r}, as one of the step's own: rename it")
        number = _number(name, getval(value))
        if not np.isfinite(number):
            raise LossError(f"the metric {name} is {number}", "NotFinite")
        found[name] = number
    return found


def _number(name: str, value: Any) -> float:
    try:
        return float(np.reshape(value, ()))
    except (TypeError, ValueError) as error:
        raise LossError(f"the metric {name} is no number: {error}") from error


def _check_finite(gradient: Sequence[Any]) -> None:
    for number, row in enumerate(gradient):
        wrong = np.flatnonzero(~np.isfinite(row))
        if len(wrong):
            where = f"token {wrong[0]} of data[{number}]"
            raise LossError(f"the loss's derivative is {row[wrong[0]]} at {where}", "NotFinite")


def answer(call: dict[str, Any]) -> dict[str, Any]:
    """An Answer, whatever the user's module does."""
    try:
        return {"kind": "Found", **differentiated(call)}
    except LossError as error:
        return _failed(error.cause, str(error))
    except MemoryError:
        return _failed("Memory", "it wanted more memory than it may have")
    # SystemExit and KeyboardInterrupt among them.
    except BaseException as error:
        return _failed("Raised", _words(error, call["file"]))


def _failed(cause: str, detail: str) -> dict[str, Any]:
    return {"kind": "Failed", "failure": {"cause": cause, "detail": detail}}


def _words(error: BaseException, file: str) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f"line {lines[-1]}: " if lines else ""
    try:
        return f"{where}{type(error).__name__}: {error}"[:1000]
    # Its __str__ is the module's own.
    except BaseException:
        return f"{where}an exception that cannot be printed"


def _hide(seconds: int, memory_bytes: int) -> None:
    """Leaves all behind but the way to answer, and gives up every right."""
    os.dup2(1, _ANSWER)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.closerange(_ANSWER + 1, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MOST_FILES))
    confinement = Confinement.offered()
    confinement.hide_files()
    confinement.enter(
        seconds=int(time.process_time()) + seconds + 1,
        address_bytes=address_bytes() + memory_bytes,
    )


def _say(said: bytes) -> None:
    rest = memoryview(said)
    while rest:
        rest = rest[os.write(_ANSWER, rest) :]


def main() -> None:
    """One call."""
    follow_parent()
    module.load_common()
    call = from_json(sys.stdin.buffer.read())
    _hide(call["seconds"], call["memory_bytes"])
    try:
        _say(READY)
        _say(json.dumps(answer(call)).encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
