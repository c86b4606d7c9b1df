"""Parses requests into wire types, keys and numbers; 422 names a bad field."""

from __future__ import annotations

import math
import uuid
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from espalier.api.wire.declared import Declared
from espalier.api.wire.headers import CLIENT, DECLARED, IDEMPOTENCY_KEY, TERM
from espalier.core.idempotency import MAX_KEY_CHARS, read_key, read_term
from espalier.trainer.problems import CommandError, invalid
from espalier.trainer.volume.command_log import Key

# Members of unions, which a place in a body names too.
_MEMBERS = ("str", "TrajectoryPayload", "save_weights", "save_weights_for_sampler")
Body = TypeVar("Body", bound=BaseModel)


def parse(body: type[Body], content: bytes) -> Body:
    """The body as a wire type."""
    try:
        return body.model_validate_json(content)
    except ValidationError as error:
        raise first_fault(error) from error


def first_fault(error: ValidationError) -> CommandError:
    """The 422 that names what is wrong with a body."""
    # A union reports one error per member; the deepest says what is wrong.
    worst = max(
        error.errors(include_url=False, include_input=False), key=lambda item: len(item["loc"])
    )
    steps = [step for step in worst["loc"] if step not in _MEMBERS]
    field = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps).lstrip(".")
    return invalid(field or "body", worst["msg"])


def key_of(request: web.Request) -> Key:
    """The caller's key; a command without one gets a key that nobody else can send."""
    text = request.headers.get(IDEMPOTENCY_KEY)
    if text is None:
        return Key(f"unkeyed-{uuid.uuid4().hex}", 0)
    key = read_key(text)
    if key is None:
        raise invalid(
            IDEMPOTENCY_KEY,
            f"{text[:MAX_KEY_CHARS]!r} is not <session>/<seq> with a seq below 2^63",
            "for example 4f1c/12",
        )
    return Key(*key)


def client_of(request: web.Request) -> str:
    """The caller without keys, as the gateway names it; empty if it names nobody."""
    text = request.headers.get(CLIENT, "")
    if not text.isascii() or len(text) > MAX_KEY_CHARS:
        raise invalid(CLIENT, f"is not ASCII of at most {MAX_KEY_CHARS} characters")
    return text


def term_of(request: web.Request) -> int | None:
    """The term that the caller names; None if it names none."""
    text = request.headers.get(TERM)
    if text is None:
        return None
    term = read_term(text)
    if term is None:
        raise invalid(TERM, f"{text[:MAX_KEY_CHARS]!r} is not a number below 2^63")
    return term


def declared_of(request: web.Request) -> Declared | None:
    """The settings of the caller's run, as the gateway sends them."""
    text = request.headers.get(DECLARED)
    if text is None:
        return None
    try:
        return Declared.model_validate_json(text)
    except ValidationError as error:
        raise invalid(DECLARED, "is not what a gateway of this version sends") from error


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
