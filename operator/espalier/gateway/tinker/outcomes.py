"""What became of a request, and how the client reads it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from espalier.tinker.results import PROTOBUF


@dataclass(frozen=True)
class Pending:
    """It takes longer; ``reason`` says why, and ``paused`` that nothing is there to work on it."""

    reason: str = ""
    paused: bool = False


@dataclass(frozen=True)
class Failed:
    """It failed; ``category`` is user, server or unknown."""

    error: str
    category: str = "user"


@dataclass(frozen=True)
class Done:
    """Its result: JSON, or a message of protobuf."""

    body: bytes | dict[str, object]


Outcome = Pending | Failed | Done


def response(future: str, outcome: Outcome) -> web.Response:
    """The outcome as the client reads it."""
    match outcome:
        case Done(body) if isinstance(body, bytes):
            return web.Response(body=body, content_type=PROTOBUF)
        case Done(body):
            return web.json_response(body)
        case Failed(error, category):
            return web.json_response({"error": error, "category": category})
        case Pending(reason, paused):
            state = "paused_capacity" if paused else "active"
            body = {"type": "try_again", "request_id": future, "queue_state": state}
            if reason:
                body["queue_state_reason"] = reason
            return web.json_response(body, status=408)
