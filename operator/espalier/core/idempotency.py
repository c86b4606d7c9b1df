"""Reads idempotency keys and terms from headers, bounded so that the log can store them.

Pure.
"""

from __future__ import annotations

MAX_KEY_CHARS = 200
# What SQLite holds.
MAX_NUMBER = 2**63 - 1
_DIGITS = len(str(MAX_NUMBER))


def read_key(text: str) -> tuple[str, int] | None:
    """Session and number of ``<session>/<seq>``; None if it is none."""
    session, _, seq = text.rpartition("/")
    number = _number(seq)
    if not session or number is None or len(text) > MAX_KEY_CHARS or not text.isascii():
        return None
    return session, number


def read_term(text: str) -> int | None:
    """The term; None if it is none."""
    return _number(text)


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > _DIGITS:
        return None
    number = int(text)
    return number if number <= MAX_NUMBER else None
