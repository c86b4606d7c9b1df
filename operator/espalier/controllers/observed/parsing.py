"""Reads objects as types, and names the fields that only a newer version of the CRDs has.

Unknown fields of a status were written by a newer operator and are ignored. An unknown field of a
spec asks for something that this version cannot do, so nothing is done for the object.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from espalier.kube.objects import Body, ObjectKey, key_of
from espalier.untrusted import field_path

T = TypeVar("T", bound=BaseModel)
UNKNOWN = "extra_forbidden"
STATUS = "status"


class UnreadableObjectError(Exception):
    """An object says something that this version does not understand; ``field`` is its path."""

    def __init__(self, key: ObjectKey, field: str, problem: str) -> None:
        super().__init__(f"{key}: {field}: {problem}")
        self.key = key
        self.field = field
        self.problem = problem


def read(kind: type[T], body: Body) -> T:
    """The object of that kind; raises UnreadableError."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        newer = [e["loc"] for e in error.errors() if e["type"] == UNKNOWN and e["loc"][0] == STATUS]
        if not newer:
            raise _unreadable(kind, body, error) from None
    try:
        return kind.model_validate(_without(body, newer))
    except ValidationError as error:
        raise _unreadable(kind, body, error) from None


def _unreadable(kind: type[BaseModel], body: Body, error: ValidationError) -> UnreadableObjectError:
    first = error.errors()[0]
    problem = "is not known to it" if first["type"] == UNKNOWN else first["msg"]
    return UnreadableObjectError(key_of(kind.__name__, body), field_path(first["loc"]), problem)


def _without(body: Body, locations: Sequence[Sequence[int | str]]) -> Body:
    known = {**body, STATUS: copy.deepcopy(body[STATUS])}
    for location in locations:
        node: Any = known
        for part in location[:-1]:
            node = node[part]
        del node[location[-1]]
    return known
