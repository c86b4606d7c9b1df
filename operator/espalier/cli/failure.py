"""Failures that a user reads."""

from __future__ import annotations

from typing import Literal

# As HUD's command line names them in its JSON.
Kind = Literal[
    "usage", "not_found", "permission_denied", "conflict", "server_error", "timeout", "failure"
]


class CliError(Exception):
    """One sentence: what went wrong; ``suggestion``: what to do."""

    def __init__(self, message: str, kind: Kind = "failure", suggestion: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.suggestion = suggestion

    @property
    def exit_code(self) -> int:
        """2 when the command itself was wrong, 1 when something failed."""
        return 2 if self.kind in ("usage", "not_found") else 1
