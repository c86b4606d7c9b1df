"""Spans, wherever they are recorded or not: without ``start`` every call here does nothing.

Nothing of OpenTelemetry is imported before ``start`` has found that spans are wanted. What is
noted are names and numbers; prompts, tokens, keys and the texts of errors are in no span.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from espalier.telemetry.recorder import Recorder

Kind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | int]

REQUEST_ID = "espalier.request_id"
NAMESPACE = "espalier.namespace"
MODEL = "espalier.model"
RUN = "espalier.run"
HEAD = "espalier.head"
STEP = "espalier.step"
CHECKPOINT = "espalier.checkpoint"
REASON = "espalier.reason"

T = TypeVar("T")
_recorder: Recorder | None = None


def start(environment: Mapping[str, str], service: str, **attributes: str) -> None:
    """Records the spans of this process from now on, if the variables say so.

    Args:
        environment: with the variables.
        service: the name of this kind of process, unless the variables give one.
        attributes: of every span, each as ``espalier.<name>``.

    Raises:
        SettingsError: see ``settings.spans_endpoint``.
    """
    # The command line and users' programs have no pydantic-settings.
    from espalier.telemetry import settings  # noqa: PLC0415

    endpoint = settings.spans_endpoint(environment)
    if not endpoint:
        return
    from espalier.telemetry.recorder import Recorder  # noqa: PLC0415

    named = {f"espalier.{name}": value for name, value in attributes.items()}
    _use(Recorder.sending(endpoint, settings.resource(environment, service, named)))


def join() -> None:
    """Records spans by what else in this process has set OpenTelemetry up."""
    from espalier.telemetry.recorder import Recorder  # noqa: PLC0415

    _use(Recorder.of_process())


def stop() -> None:
    """Sends what is left, for a bounded time, and records nothing more."""
    global _recorder
    recorder, _recorder = _recorder, None
    if recorder is not None:
        recorder.stop()


def recording() -> bool:
    """Whether this process records spans."""
    return _recorder is not None


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    caller: Mapping[str, str] | None = None,
) -> AbstractContextManager[None]:
    """A span while the block runs, of the trace of a caller's headers, the current one, or anew."""
    if _recorder is None:
        return nullcontext()
    return _recorder.span(name, attributes or {}, kind, caller)


def part(
    name: str, attributes: Attributes | None = None, *, kind: Kind = "internal"
) -> AbstractContextManager[None]:
    """A span of the current trace; none without one, as of what is asked again and again."""
    if _recorder is None or not _recorder.inside():
        return nullcontext()
    return _recorder.span(name, attributes or {}, kind, None)


def past(name: str, since: int) -> None:
    """A span of the current trace from a time (ns since the epoch) until now."""
    if _recorder is not None and _recorder.inside():
        _recorder.past(name, since)


def note(attributes: Attributes) -> None:
    """Adds to the current span."""
    if _recorder is not None:
        _recorder.note(attributes)


def failed(why: str) -> None:
    """Marks the current span as failed; ``why`` is a name or a number."""
    if _recorder is not None:
        _recorder.failed(why)


def carry_on(headers: MutableMapping[str, str]) -> None:
    """Puts the current trace into the headers of a request."""
    if _recorder is not None:
        _recorder.carry_on(headers)


def here(work: Callable[[], T]) -> Callable[[], T]:
    """Work for another thread, in the trace of this one."""
    if _recorder is None:
        return work
    context = contextvars.copy_context()
    return lambda: context.run(work)


def apart() -> contextvars.Context:
    """The context of a task that goes on after what begins it: it is of no trace.

    Otherwise each of its requests, polls without end among them, would be a span of that one trace.
    """
    return contextvars.Context()


def _use(recorder: Recorder | None) -> None:
    global _recorder  # noqa: PLW0603
    _recorder = recorder
