"""How large a grammar becomes when it is compiled, from its text. Pure.

A counted repetition is written in a few bytes and unrolled by the compiler: ``(a{1,500}){1,500}``
takes a quarter of a million states. Counts that are nested multiply, those beside each other add.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

MAX_CHARS = 64 * 2**10
MAX_STATES = 20_000
# Of a JSON schema: how often something may or must be repeated.
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
# A count beyond this is as good as any other.
_MOST = 10**9
_REPEATED = re.compile(r"\{\s*(\d+)?\s*(,)?\s*(\d+)?\s*\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def excess(kind: str, given: Any) -> str:
    """What is too large about a grammar, in words that follow its name; empty if nothing is.

    Args:
        kind: the field of vLLM's ``StructuredOutputsParams``.
        given: its value.
    """
    text = given if isinstance(given, str) else json.dumps(given, default=str)
    if len(text) > MAX_CHARS:
        return f"has {len(text)} characters, and {MAX_CHARS} are taken"
    if kind == "json":
        states = _of_schema(_parsed(given))
    elif kind in ("regex", "grammar"):
        states = of_expression(text)
    else:
        states = 0
    if states > MAX_STATES:
        return f"becomes about {min(states, 1e99):.0e} states, and {MAX_STATES} are taken"
    return ""


def of_expression(text: str) -> float:
    """The states of a regular expression, or of a grammar's text, whose groups count alike."""
    # Of each group that is open: what it holds already, and its last item.
    open_groups: list[tuple[float, float]] = []
    held, last, at = 0.0, 0.0, 0
    while at < len(text):
        sign, width = text[at], 1
        if sign == "\\":
            held, last, width = held + last, 1.0, 2
        elif sign == "[" and (found := _CLASS.match(text, at)):
            held, last, width = held + last, 1.0, found.end() - at
        elif sign == "(":
            open_groups.append((held, last))
            held, last = 0.0, 0.0
        elif sign == ")" and open_groups:
            inside = held + last
            before, item = open_groups.pop()
            held, last = before + item, inside
        elif sign == "{" and (found := _REPEATED.match(text, at)):
            last, width = last * _times(found), found.end() - at
        else:
            held, last = held + last, 1.0
        at += width
    return held + last + sum(before + item for before, item in open_groups)


def _times(found: re.Match[str]) -> float:
    """The most that a compiler unrolls: up to the upper count, or the lower one if that is all."""
    # A longer number is no smaller than this one.
    return max([1.0, *(float(number[:9]) for number in (found[1], found[3]) if number)])


def _of_schema(schema: Any) -> float:
    """The states of a JSON schema's counts and patterns; nothing recurses, however deep it is."""
    most, left = 0.0, [(schema, 1.0)]
    while left:
        part, around = left.pop()
        if isinstance(part, Mapping):
            counts = [part.get(name) for name in _COUNTS]
            own = max([1.0, *(float(min(c, _MOST)) for c in counts if _is_number(c))])
            states = around * own
            pattern = part.get("pattern")
            if isinstance(pattern, str):
                states *= max(1.0, of_expression(pattern))
            most += states
            left += [(value, around * own) for value in part.values()]
        elif isinstance(part, list):
            left += [(value, around) for value in part]
    return most


def _parsed(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        # vLLM refuses what is no JSON.
        return None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
