"""Takes secrets out of a configuration before a tracker sees it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

REDACTED = "[redacted]"
# Shorter values of the environment would be found in half of all words.
SHORTEST_SECRET = 8
_SECRET_NAME = re.compile(
    r"token|passw|secret|credential|authorization|cookie|private|(api|access|auth|ssh)?[-_.]?key$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"(?P<user>(?<=://)[^/\s@]+:[^/\s@]+(?=@))"  # of a URL
    r"|\bBearer\s+\S+"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JWT
    r"|\b(?:sk|hf|ghp|gho|github_pat|glpat|xox[abp]|wandb_v1|dapi)[-_][\w-]{12,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|-----BEGIN[ A-Z]*PRIVATE KEY-----[\s\S]*"
)


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values of variables whose names say that they are secret, the longest first."""
    found = {
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET
    }
    return tuple(sorted(found, key=len, reverse=True))


def redacted(config: Any, known: Iterable[str] = ()) -> Any:
    """The configuration without secrets, made of what JSON can say.

    A text goes whole where its field's name says that it is secret (a number such as
    ``max_tokens`` stays), and elsewhere what looks like a credential goes out of it.

    Args:
        config: of any depth.
        known: values that are secret wherever they stand.
    """
    return _of(config, tuple(known), secret=False)


def _of(value: Any, known: tuple[str, ...], *, secret: bool) -> Any:
    if isinstance(value, Mapping):
        # A variable of a pod's template: {name: API_KEY, value: …}.
        named = str(value.get("name", "")) if "value" in value else ""
        secret = secret or _SECRET_NAME.search(named) is not None
        return {
            _text(str(name), known): _of(
                inner, known, secret=secret or _SECRET_NAME.search(str(name)) is not None
            )
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_of(inner, known, secret=secret) for inner in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return REDACTED if secret else _text(str(value), known)


def _text(text: str, known: tuple[str, ...]) -> str:
    for value in known:
        text = text.replace(value, REDACTED)
    return _SECRET_VALUE.sub(REDACTED, text)
