"""Checks the body of a completion or chat: known fields, numbers in range, grammars that end.

vLLM silently ignores fields that it does not know, and fails with a 500 on a number that its engine
cannot hold and on a schema without a finite value. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeGuard

from espalier.sampler.grammar_size import excess

# Fields of OpenAI's API that vLLM does not know, with the values that have no effect.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
}
# As many as a group of a run may have.
MAX_ANSWERS = 1024
# The fields of vLLM's StructuredOutputsParams that hold a grammar.
GRAMMARS = ("json", "regex", "choice", "grammar", "structural_tag")
_LIMITS = ("max_tokens", "max_completion_tokens")
_INT64 = 1 << 63
# Keywords of a JSON schema whose parts describe the same value as the whole.
_SAME_VALUE = ("anyOf", "oneOf", "allOf")


def refusal(request: Any, taken: Collection[str] = ()) -> tuple[str, str] | None:
    """Field and message of what cannot be honoured; None if all can.

    Args:
        request: vLLM's request of a completion or a chat.
        taken: fields that others than vLLM read.
    """
    return next(_refusals(request, taken), None)


def fit(request: Any, context: int) -> None:
    """Limits an answer to the context if the request asks for more, or sets no limit."""
    for name in _LIMITS:
        value = getattr(request, name, None)
        if value is not None and value > context:
            setattr(request, name, context)


def _refusals(request: Any, taken: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, value in sorted((request.model_extra or {}).items()):
        if name not in taken and value is not None and value not in _NEUTRAL.get(name, ()):
            yield name, f"{name} is unknown here and would have no effect: leave it out"
    for name, value in request.__dict__.items():
        if name not in _LIMITS and any(map(_too_large, value if _is_list(value) else [value])):
            yield name, f"{name} is a number beyond 64 bits: send a smaller one"
    count = request.n
    if isinstance(count, int) and count > MAX_ANSWERS:
        yield "n", f"n is {count}, and {MAX_ANSWERS} are taken: ask several times"
    grammar = request.extract_structured_outputs()
    for kind in GRAMMARS if grammar is not None else ():
        given = getattr(grammar, kind)
        if given is not None and (large := excess(kind, given)):
            yield kind, f"the {kind} {large}: make it smaller, or count less in it"
            return
    if grammar is not None and _endless(grammar.json):
        yield "json", "the JSON schema refers to itself without end: no value can be written for it"


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _too_large(value: Any) -> bool:
    return isinstance(value, int) and not -_INT64 <= value < _INT64


def _endless(given: Any) -> bool:
    """Whether some value of the schema is described by nothing but itself."""
    try:
        schema = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return False
    # The sorter does not recurse, however long a hostile chain of references is.
    same_value = {id(part): _described_by(part, schema) for part in _parts(schema)}
    try:
        TopologicalSorter(same_value).prepare()
    except CycleError:
        return True
    return False


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in the schema."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
        left += part.values() if isinstance(part, dict) else part if _is_list(part) else ()


def _described_by(part: dict[str, Any], schema: Any) -> list[int]:
    """The other parts that say what the same value is; a member's value is another one."""
    others = [_target(schema, part.get("$ref"))]
    for name in _SAME_VALUE:
        choices = part.get(name)
        others += choices if _is_list(choices) else ()
    return [id(other) for other in others if isinstance(other, dict)]


def _target(schema: Any, reference: Any) -> Any:
    """What a reference inside the schema points at; None where it points elsewhere."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = schema
    for step in filter(None, reference[1:].split("/")):
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found
