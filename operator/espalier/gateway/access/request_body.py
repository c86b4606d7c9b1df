"""Reads a request's body within its limit, as one of our types; what does not fit is a 422."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from espalier.gateway.access.request_limits import BODY_LIMIT, HELD, too_large
from espalier.gateway.problems import RefusalError
from espalier.untrusted import UnreadableError, read_json

# The time for a whole body: 4 MiB need 70 KB/s.
BODY_SECONDS = 60.0

Body = TypeVar("Body", bound=BaseModel)


async def read_bytes(request: web.Request) -> bytes:
    """The body; RefusalError 413 over its route's limit, 408 when it is late, 503 without room."""
    announced = request.content_length
    body = bytearray()
    if announced:
        await request[HELD].take(announced)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_any():
                if announced is None:
                    await request[HELD].take(len(part))
                body += part
                if len(body) > request[BODY_LIMIT]:
                    raise too_large(request[BODY_LIMIT])
    except TimeoutError as error:
        raise late(BODY_SECONDS) from error
    return bytes(body)


def late(seconds: float) -> RefusalError:
    """408: the client does not send what it announced."""
    return RefusalError(
        408, "BodyTimeout", f"the body did not come within {seconds:.0f} s", "Send it again"
    )


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object; RefusalError 400 if it is not one."""
    return as_object(await read_bytes(request))


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """The body; RefusalError 422 with the first field that does not fit."""
    return as_body(await read_object(request), kind)


def as_object(text: bytes) -> dict[str, Any]:
    """Bytes as a JSON object; RefusalError 400 if they are not one."""
    try:
        body = read_json(text)
    except UnreadableError as error:
        raise RefusalError(400, "InvalidJson", f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusalError(400, "InvalidJson", "the body is not a JSON object")
    return body


def as_body(body: dict[str, Any], kind: type[Body]) -> Body:
    """A JSON object as one of our types; RefusalError 422 with the first field that is wrong."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(step) for step in first["loc"]) or "body"
        # A value that is out of range says itself what it should be.
        misnamed = first["type"] in {"missing", "extra_forbidden"}
        remedy = f"The fields are {', '.join(kind.model_fields)}" if misnamed else ""
        raise RefusalError(422, "InvalidRequest", f"{field}: {first['msg']}", remedy) from error
