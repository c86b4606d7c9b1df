"""Spans by OpenTelemetry's SDK, which nothing else of ours imports.

They wait in a bounded queue and are sent by a thread, so that a collector that is slow or gone
costs spans and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Self

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

STOP_SECONDS = 2.0

_PROPAGATOR = TraceContextTextMapPropagator()
_KINDS = {
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "internal": trace.SpanKind.INTERNAL,
}


class Recorder:
    """Records spans with one provider of tracers; ``own`` is the one that ``stop`` ends."""

    def __init__(self, provider: trace.TracerProvider, own: TracerProvider | None = None) -> None:
        self._tracer = provider.get_tracer("espalier")
        self._own = own

    @classmethod
    def sending(cls, endpoint: str, resource: Mapping[str, str]) -> Self:
        """Spans of a resource, sent to a URL by OTLP."""
        provider = TracerProvider(resource=Resource.create(dict(resource)), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider, provider)

    @classmethod
    def of_process(cls) -> Self:
        """Spans of what somebody else has set up for this process."""
        return cls(trace.get_tracer_provider())

    def stop(self) -> None:
        """Sends what is left, within STOP_SECONDS."""
        if self._own is not None:
            # Its own time-outs add up to half a minute while nobody answers.
            ending = threading.Thread(target=self._own.shutdown, daemon=True)
            ending.start()
            ending.join(STOP_SECONDS)

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Mapping[str, str | int],
        kind: str,
        caller: Mapping[str, str] | None,
    ) -> Iterator[None]:
        """See ``spans.span``."""
        context = None if caller is None else _PROPAGATOR.extract(caller)
        with self._tracer.start_as_current_span(
            name,
            context,
            kind=_KINDS[kind],
            attributes=attributes,
            # The text of an error may quote what a user has sent.
            record_exception=False,
            set_status_on_exception=False,
        ):
            try:
                yield
            except BaseException as error:
                self.failed(type(error).__name__)
                raise

    def past(self, name: str, since: int) -> None:
        """See ``spans.past``."""
        self._tracer.start_span(name, start_time=since).end()

    def inside(self) -> bool:
        """Whether there is a current trace."""
        return trace.get_current_span().get_span_context().is_valid

    def note(self, attributes: Mapping[str, str | int]) -> None:
        """See ``spans.note``."""
        trace.get_current_span().set_attributes(dict(attributes))

    def failed(self, why: str) -> None:
        """See ``spans.failed``."""
        current = trace.get_current_span()
        current.set_status(trace.Status(trace.StatusCode.ERROR))
        current.set_attribute("error.type", why)

    def carry_on(self, headers: MutableMapping[str, str]) -> None:
        """See ``spans.carry_on``."""
        _PROPAGATOR.inject(headers)
