"""Checks an object as an API server does beyond its types: unknown fields and CEL rules.

The rules are those of the kind's schema (x-kubernetes-validations, KEP-2876).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import cel

from espalier.api.crds import KINDS, definition
from espalier.api.schema import VALIDATIONS
from espalier.kube.objects import Body
from espalier.local import quantity

Node = dict[str, Any]
PRESERVED = "x-kubernetes-preserve-unknown-fields"


@dataclass(frozen=True)
class Refusal:
    """What is wrong with a field. ``undecided``: its value has another type than a rule needs."""

    field: str
    message: str
    undecided: bool = False

    def __str__(self) -> str:
        # A rule of the whole object names its field itself.
        return f"{self.field}: {self.message}" if self.field else self.message


def refusals(body: Body, old: Body | None) -> Iterator[Refusal]:
    """Why an object is refused; rules about changes apply if ``old`` is given.

    Defaults are filled in first, in both, because the API server does.
    """
    schema = _schema(body["kind"])
    new = _defaulted(schema, _ours(body))
    before = None if old is None else _defaulted(schema, _ours(old))
    yield from _walk(schema, new, before, "")


def _ours(body: Body) -> Node:
    """The parts that are checked; of metadata, rules see only the name."""
    return {"metadata": {"name": body["metadata"]["name"]}, "spec": body.get("spec") or {}}


@cache
def _schema(kind: str) -> Node:
    (found,) = [definition(known) for known in KINDS if known.name == kind]
    schema: Node = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _defaulted(schema: Node, value: Any) -> Any:
    if isinstance(value, dict):
        known = schema.get("properties", {})
        absent = {k: s["default"] for k, s in known.items() if "default" in s and k not in value}
        other = schema.get("additionalProperties", {})
        return {k: _defaulted(known.get(k, other), v) for k, v in {**value, **absent}.items()}
    if isinstance(value, list):
        return [_defaulted(schema.get("items", {}), item) for item in value]
    return value


def _walk(schema: Node, value: Any, old: Any, path: str) -> Iterator[Refusal]:
    for rule in schema.get(VALIDATIONS, ()):
        yield from _judge(rule, value, old, path)
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        before = old if isinstance(old, dict) else {}
        closed = bool(known) and not schema.get(PRESERVED)
        for key, item in value.items():
            place = f"{path}[{key}]" if other else f"{path}.{key}"
            if closed and key not in known:
                yield Refusal(place.removeprefix("."), "field not declared in schema: remove it")
            yield from _walk(known.get(key, other), item, before.get(key), place)
    elif isinstance(value, list):
        if _repeats(schema, value):
            yield Refusal(path.removeprefix("."), "has duplicate entries: leave one of each")
        for index, item in enumerate(value):
            yield from _walk(schema.get("items", {}), item, None, f"{path}[{index}]")


def _repeats(schema: Node, values: list[Any]) -> bool:
    """Whether a set has a value twice, or a list of named things a name."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if schema.get("x-kubernetes-list-type") == "set":
        shown = [repr(value) for value in values]
    elif keys:
        shown = [repr([value.get(k) for k in keys]) for value in values if isinstance(value, dict)]
    else:
        return False
    return len(set(shown)) < len(shown)


def _judge(rule: Node, value: Any, old: Any, path: str) -> Iterator[Refusal]:
    program = _compiled(rule["rule"])
    if old is None and "oldSelf" in program.variables() and not rule.get("optionalOldSelf"):
        return
    field = f"{path}{rule.get('fieldPath', '')}".removeprefix(".")
    try:
        holds = program.execute(_context(value, old))
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        yield Refusal(field, f"{rule['message']} ({error})", undecided=True)
        return
    if not holds:
        yield Refusal(field, rule["message"])


def _context(value: Any, old: Any) -> cel.Context:
    """The variables of a rule: the object, and Kubernetes' functions that our rules use."""
    functions: dict[str, Callable[..., Any]] = {
        "quantity": quantity.number,
        "isLessThan": lambda one, other: one < other,
        "hasValue": lambda optional: optional is not None,
        "value": lambda optional: optional,
        "sum": sum,
    }
    return cel.Context(variables={"self": value, "oldSelf": old}, functions=functions)


@cache
def _compiled(rule: str) -> cel.Program:
    return cel.compile(rule)
