"""What requests say: bodies as wire types, keys and numbers; 422 names what does not fit."""

from __future__ import annotations

import math
import uuid
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from espalier.api.wire import IDEMPOTENCY_KEY
from espalier.trainer.log import Key
from espalier.trainer.problems import invalid

MAX_KEY_CHARS = 200

Body = TypeVar("Body", bound=BaseModel)


def parse(body: type[Body], content: bytes) -> Body:
    """The body as a wire type."""
    try:
        return body.model_validate_json(content)
    except ValidationError as error:
        # A union reports one error per member; the deepest says what is wrong.
        worst = max(
            error.errors(include_url=False, include_input=False), key=lambda item: len(item["loc"])
        )
        steps = [step for step in worst["loc"] if step not in ("str", "TrajectoryPayload")]
        field = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps).lstrip(".")
        raise invalid(field or "body", worst["msg"]) from error


def key_of(request: web.Request) -> Key:
    """The caller's key; a command without one gets a key that nobody else can send."""
    text = request.headers.get(IDEMPOTENCY_KEY)
    if text is None:
        return Key(f"unkeyed-{uuid.uuid4().hex}", 0)
    session, _, seq = text.rpartition("/")
    if not session or not (seq.isascii() and seq.isdigit()) or len(text) > MAX_KEY_CHARS:
        raise invalid(IDEMPOTENCY_KEY, f"{text!r} is not <session>/<seq>", "for example 4f1c/12")
    return Key(session, int(seq))


def number(request: web.Request, name: str, default: float, *, whole: bool = False) -> float:
    """A number of the query, at least 0."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise invalid(name, f"{text!r} is not a number") from error
    if not math.isfinite(value) or value < 0 or (whole and not value.is_integer()):
        raise invalid(name, f"{text!r} is not a {'whole ' if whole else ''}number of at least 0")
    return value
