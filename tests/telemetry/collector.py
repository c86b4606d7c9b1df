"""A collector that takes OTLP over HTTP, and what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATIENCE_SECONDS = 30.0
# The SDK reads it from its process; it is in milliseconds.
SOON = ("OTEL_BSP_SCHEDULE_DELAY", "50")


@dataclass(frozen=True)
class Span:
    """A span as it came; ``service`` is of the process that recorded it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    about: dict[str, Any]


@dataclass
class Collector:
    """Keeps spans; ``endpoint`` is what OTEL_EXPORTER_OTLP_ENDPOINT is set to."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    _came: threading.Condition = field(default_factory=threading.Condition)

    def environment(self) -> dict[str, str]:
        """By which a process sends its spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, SOON[0]: SOON[1]}

    def take(self, body: bytes) -> None:
        found = ExportTraceServiceRequest.FromString(body)
        with self._came:
            for of in found.resource_spans:
                resource = _read(of.resource.attributes)
                self.spans += [
                    Span(
                        resource["service.name"],
                        one.name,
                        one.trace_id.hex(),
                        one.span_id.hex(),
                        one.parent_span_id.hex(),
                        resource | _read(one.attributes),
                    )
                    for scope in of.scope_spans
                    for one in scope.spans
                ]
            self._came.notify_all()

    def wait(self, wanted: Callable[[Span], bool]) -> Span:
        """The first span of this kind; fails when none comes."""
        with self._came:
            come = self._came.wait_for(
                lambda: any(wanted(span) for span in self.spans), PATIENCE_SECONDS
            )
            assert come, [(span.service, span.name) for span in self.spans]
            return next(span for span in self.spans if wanted(span))

    def named(self, name: str) -> Span:
        """The first span of a name."""
        return self.wait(lambda span: span.name == name)

    def ancestors(self, span: Span) -> list[tuple[str, str]]:
        """Service and name of a span and of those above it, the nearest first."""
        found = [(span.service, span.name)]
        while span.parent:
            above = span.parent
            trace = span.trace
            span = self.wait(lambda one: one.id == above)  # noqa: B023 it is used at once
            assert span.trace == trace
            found.append((span.service, span.name))
        return found


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector at a free port."""
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            kept.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    kept.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()


def _read(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
