"""JSON of others read as our types, at a cost that is bounded by its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

MAX_CHARS = 400
# Arrays and objects of one text. A list takes 64 bytes and an object 250 where two bytes say "[]",
# so this bounds what a text becomes: about 125 MB, in a third of a second. The log-probs of one
# token are three of them.
MAX_NESTED = 500_000

Model = TypeVar("Model", bound=BaseModel)


class UnreadableError(ValueError):
    """The text is no JSON, or not of the wanted type; ``str`` says why, in MAX_CHARS at most."""


def read_json(content: bytes) -> Any:
    """The value; UnreadableError if it is no JSON, nested deeper than 200, or of too many parts."""
    # Those inside strings count too: text holds few of them, and to count is to look at each byte.
    if content.count(b"[") + content.count(b"{") > MAX_NESTED:
        raise UnreadableError(f"it has more than {MAX_NESTED} arrays and objects")
    try:
        return from_json(content)
    except ValueError as error:
        raise UnreadableError(str(error)[:MAX_CHARS]) from None


def read_model(kind: type[Model], content: bytes) -> Model:
    """The text as a type of ours; UnreadableError if it is none.

    JSON first and the type afterwards: pydantic's reader of both in one goes over a faulty object
    once for each fault, so that 2 MiB of JSON took 570 MiB.
    """
    try:
        return kind.model_validate(read_json(content))
    except ValidationError as error:
        raise UnreadableError(_summary(error)) from None


def field_path(location: Sequence[int | str]) -> str:
    """Where pydantic found an error, as people write it: ``spec.rules[0].name``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def _summary(error: ValidationError) -> str:
    # Each fault is an object of its own: a few are worth it.
    if error.error_count() > 20:
        return f"it has {error.error_count()} faults"
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    named = (f"{'.'.join(map(str, f['loc'])) or 'it'}: {f['msg']}" for f in faults)
    return "; ".join(named)[:MAX_CHARS]
