"""Ids of traces and jobs, in one form."""

from __future__ import annotations

import uuid

from espalier.trainer.problems import CommandError, invalid


def canonical(text: str) -> str:
    """A trace or job id in one form, with or without dashes; 422 when it is no UUID."""
    try:
        return uuid.UUID(text).hex
    except ValueError as error:
        raise invalid("trace id", f"{text!r} is not a UUID") from error


def canonical_or_empty(text: str | None) -> str:
    """An id in one form; empty if it is absent or not a UUID."""
    try:
        return canonical(text or "")
    except CommandError:
        return ""
