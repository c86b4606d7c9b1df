"""A grammar of a few bytes that would take a sampler's memory or minutes is refused by its size."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from espalier.sampler.grammar_size import MAX_CHARS, excess, of_expression

Schema = dict[str, Any]
NESTED: Schema = {"type": "array", "maxItems": 1000, "items": {"type": "string", "maxLength": 1000}}
HOSTILE: list[tuple[str, Any]] = [
    ("regex", "(a{1,500}){1,500}"),
    ("regex", "((a{100}b){100}c){100}"),
    ("regex", "a{1,999999999999999999999}"),
    ("regex", "(" * 3000 + "a{99}" + "){99}" * 3000),
    ("regex", "[^]{1]{1,2000000}"),
    ("regex", "a" * (MAX_CHARS + 1)),
    ("grammar", "root ::= (x{1,400} y){400}\nx ::= [a-z]"),
    ("choice", ["a" * MAX_CHARS]),
    ("structural_tag", "x" * (MAX_CHARS + 1)),
    ("json", NESTED),
    ("json", json.dumps(NESTED)),
    ("json", {"properties": {"a": {"type": "string", "pattern": "(x{1,300}){300}"}}}),
    ("json", {"type": "string", "maxLength": 10**30}),
    ("json", {"type": "string", "maxLength": 1e300}),
    ("json", {"type": "string", "maxLength": 10**400}),
    ("json", {"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 10**6}),
]
USUAL: list[tuple[str, Any]] = [
    ("regex", r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})"),
    ("regex", r"(yes|no|maybe)( [a-z]{1,20}){0,50}"),
    ("regex", r"[{}]{2,5}\{3\}"),
    ("regex", "(unbalanced"),
    ("grammar", 'root ::= "SELECT " name ("," name)*\nname ::= [a-z]{1,30}'),
    ("choice", ["positive", "negative"]),
    ("json", {"type": "object", "properties": {"steps": {"type": "array", "maxItems": 50}}}),
    ("json", '{"type": "string", "maxLength": 4000}'),
    ("json", "not json"),
    ("json", {"minItems": True, "maxLength": float("nan")}),
]


@pytest.mark.parametrize(("kind", "given"), HOSTILE)
def test_a_grammar_that_unrolls_is_refused_within_a_moment(kind: str, given: Any) -> None:
    began = time.process_time()
    assert excess(kind, given)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(("kind", "given"), USUAL)
def test_a_grammar_of_everyday_use_is_taken(kind: str, given: Any) -> None:
    assert excess(kind, given) == ""


def test_nested_counts_multiply_and_others_add() -> None:
    assert of_expression("a{10}b{20}") == 30
    assert of_expression("(a{10}b){20}") == 220
    assert of_expression(r"\({3}[x{9}]{4}") == 7
