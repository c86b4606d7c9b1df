"""Requests that no client sends: each route of an application, with hostile names and bodies.

The routes are read off the application, so that a new one is tried without being named here. What
is drawn is the same in every run.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aiohttp import web

Tree = dict[str, Any]

PLACEHOLDER = re.compile(r"\{[^}]*\}")
JSON = {"Content-Type": "application/json"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# In place of any value of a body.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, -0.0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**40),
    *(1e308, -1e-308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "-1", "NaN", "null", "a" * 20_000, "\x00", "\x1b[31m", "\r\nX-A: b", "\ud800"),
    *("../../etc/passwd", "..", "/", "arith@", "@", "@base", "arith@arith-000001", "home/arith"),
    *("${jndi:ldap://x}", "{{7*7}}", "%s%n", "'; DROP TABLE commands; --", "sha256:" + "0" * 64),
    *([], [[]], [None], [{}], ["x"] * 500, [1] * 500, [[[[[[[[1]]]]]]]]),
    *({}, {"": ""}, {"$ref": "#"}, {"__proto__": 1}, {"type": ["text"]}, {"a": {"a": {"a": {}}}}),
)
# Whole bodies, as bytes.
BODIES: tuple[bytes, ...] = (
    *(
        b"",
        b"{",
        b"}",
        b"null",
        b"true",
        b"0",
        b'""',
        b"[]",
        b"{}",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
    ),
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b'{"model":"arith","model":"other"}',
    b'{"prompt":"\\ud800"}',
    b"9" * 20_000,
    b"a=b&c=d",
    b"\x80\x04K\x01.",
    b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>",
)
SEGMENTS = (
    *("arith", "home", "other", "arith@base", "arith@arith-000001", "main", "0", "-1", "0" * 32),
    *(
        "..",
        ".",
        "...",
        "../..",
        "a/b",
        "\x00",
        "\x1b[2J",
        "\r\nX: y",
        "%",
        "%2e%2e",
        "💥",
        "'",
        "a" * 3000,
    ),
    *("forward-backward", "optim-step", "state", "*", "?x=1", "#x", "4" * 40),
)
HEADERS: tuple[dict[str, str], ...] = (
    *({}, {}, {}),
    *({"Content-Type": kind} for kind in ("application/json", "text/xml", "", 'a/b; c="')),
    *(
        {"Idempotency-Key": key}
        for key in ("a/1", "a/0", "/1", "a/-1", "a/9999999999999999999", "a" * 4000)
    ),
    *({"Espalier-Term": term} for term in ("0", "1", "99", "-1", "1.5", "x")),
    *({"X-Request-Id": text} for text in ("ok-1", "a b", "x" * 300)),
    *({"Trace-Id": text} for text in ("0" * 32, "x", "../../a")),
    {"Content-Encoding": "gzip"},
    {"Expect": "x"},
    {"Range": "bytes=0-1"},
    {"Espalier-Client": "me"},
    {"Espalier-Declared": "{}"},
)


@dataclass(frozen=True)
class Hostile:
    """One request; ``kinds`` say what of it is hostile, and are empty where nothing is."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    kinds: tuple[str, ...] = ()


def routes_of(app: web.Application) -> list[tuple[str, str]]:
    """Method and path of every route; a path has its placeholders. Of all methods it has POST."""
    return sorted(
        {
            ("POST" if route.method == "*" else route.method, route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    )


def requests(
    routes: Sequence[tuple[str, str]], bodies: Sequence[Tree], count: int, seed: int = 0
) -> Iterator[Hostile]:
    """So many requests; ``bodies`` are good ones, which are spoilt."""
    chance = random.Random(seed)
    for number in range(count):
        method, path = routes[number % len(routes)]
        kinds = []
        if chance.random() < 0.05:
            method = chance.choice(METHODS)
            kinds.append("another method")
        # Mostly a name that leads somewhere, or no request would get beyond it.
        segments: list[str] = []

        def named(_: re.Match[str], segments: list[str] = segments) -> str:
            hostile = chance.random() < 0.4
            segments.append(chance.choice(SEGMENTS) if hostile else "arith")
            return quote(segments[-1], safe="")

        filled = PLACEHOLDER.sub(named, path)
        query = chance.choice(
            ("", "", "", "?offset=x", "?after=-1&wait=nan", "?limit=" + "9" * 400)
        )
        if query or {*segments} - {"arith"}:
            kinds.append("names and queries")
        headers = chance.choice(HEADERS)
        if headers:
            kinds.append("headers")
        of_the_body, body = _body(chance, bodies)
        if of_the_body:
            kinds.append(of_the_body)
        yield Hostile(method, filled + query, JSON | headers, body, tuple(kinds))


def _body(chance: random.Random, bodies: Sequence[Tree]) -> tuple[str, bytes]:
    """What of it is hostile, and the body."""
    if chance.random() < 0.15:
        return "bytes that are no request", chance.choice(BODIES)
    tree = copy.deepcopy(chance.choice(bodies))
    spoilt = chance.choice((0, 1, 1, 1, 2, 3))
    for _ in range(spoilt):
        _spoil(chance, tree)
    return "spoilt fields" if spoilt else "", json.dumps(tree).encode()


def _spoil(chance: random.Random, tree: Tree) -> None:
    """Puts a hostile value in some place, adds a field, or takes one away."""
    places = [*_places(tree)]
    if not places or chance.random() < 0.1:
        tree[chance.choice(("extra", "", "n", "stream", "__class__"))] = chance.choice(VALUES)
        return
    holder, key = chance.choice(places)
    if chance.random() < 0.15 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = copy.deepcopy(chance.choice(VALUES))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in entries:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)
