"""What is needed to send a command again, and a directory of those that have no answer yet."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from espalier.client.errors import ConfigurationError


class Ticket(BaseModel):
    """A command as it was sent, byte for byte: the same key with another body is refused.

    Attributes:
        model: slug of the model.
        command: last part of its route, such as ``optim-step``.
        key: idempotency key, ``<session>/<seq>``.
        body: JSON.
        term: of the head that the caller trains under; 0 for whatever is live.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    command: str
    key: str
    body: str
    term: int = 0


class Journal:
    """Keeps the tickets of commands without an answer, one file each, so that they outlive us."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, ticket: Ticket) -> None:
        """Before the command is sent for the first time."""
        path = self._path(ticket)
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            file.write(ticket.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)

    def remove(self, ticket: Ticket) -> None:
        """Once it was answered."""
        self._path(ticket).unlink(missing_ok=True)

    def unanswered(self, model: str) -> list[Ticket]:
        """The tickets of a model, in the order in which they were written.

        Raises:
            ConfigurationError: a file of the directory is no ticket.
        """
        found = sorted(self._directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        tickets = [_read(path) for path in found]
        return [ticket for ticket in tickets if ticket.model == model]

    def _path(self, ticket: Ticket) -> Path:
        return self._directory / f"{ticket.key.replace('/', '-')}.json"


def _read(path: Path) -> Ticket:
    try:
        return Ticket.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ConfigurationError(
            f"{path} is no ticket of this client: give the journal a directory of its own"
        ) from error
