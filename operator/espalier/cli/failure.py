"""Failures that a user reads."""

from __future__ import annotations


class CommandError(Exception):
    """One sentence: what went wrong and what to do."""
