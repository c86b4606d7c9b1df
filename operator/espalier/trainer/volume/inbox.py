"""The inbox: commands that were accepted and are not yet applied, in the order of their numbers.

A command is accepted once it is durable. It leaves the inbox in the transaction that logs its
answer, so after a crash it is either still here or answered: never neither, never both. Its body
is one file from its arrival until nothing needs it any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.trainer.problems import CommandError
from espalier.trainer.volume.durable_files import volume_written, write_file
from espalier.trainer.volume.log_bodies import read_logged
from espalier.trainer.volume.log_database import LogDatabase
from espalier.trainer.volume.log_records import GAP, Key

SCHEMA = """
CREATE TABLE IF NOT EXISTS inbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL, seq INTEGER NOT NULL,
    kind TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    term INTEGER, declared TEXT NOT NULL, problem TEXT NOT NULL,
    crashes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (session, seq));
"""
# What waits at most; a client's own limit of futures in flight is far below.
MOST_COMMANDS = 1024
MOST_BYTES = 512 << 20
_COLUMNS = "number, session, seq, kind, digest, term, declared, problem, crashes"
_APPLIED = (
    "COALESCE((SELECT MAX(seq) FROM commands WHERE session = inbox.session "
    "AND status IS NOT NULL), 0)"
)


@dataclass(frozen=True)
class Arrival:
    """A command as it arrives.

    ``term`` and ``declared`` (JSON) are what the gateway says with it, empty for nothing.
    ``problem`` (JSON) refuses it: it only uses up its number.
    """

    key: Key
    kind: str
    body: bytes
    term: int | None = None
    declared: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Queued:
    """A command in the inbox; ``crashes`` counts the trainers that died while they applied it."""

    number: int
    key: Key
    kind: str
    digest: str
    term: int | None
    declared: str
    problem: str
    crashes: int

    @property
    def file(self) -> str:
        """The name of its body's file."""
        return file_of(self.number)


def file_of(number: int) -> str:
    """The name of the body of the ``number``-th arrival."""
    return f"inbox-{number:09d}"


class Inbox:
    """The waiting commands of all sessions; every method is one durable transaction."""

    def __init__(self, database: LogDatabase, bodies: Path) -> None:
        self._db = database
        self._bodies = bodies

    def accept(self, arrival: Arrival) -> None:
        """Keeps a command; a resend changes nothing.

        Raises 422 if the key was used for another command or comes too late, 429 if no more can
        wait, 507 for a fault of the volume.
        """
        digest = hashlib.sha256(arrival.body).hexdigest()
        with volume_written(self._bodies), self._db.transaction():
            if self._is_known(arrival, digest):
                return
            self._check_room(len(arrival.body))
            key = arrival.key
            cursor = self._db.execute(
                "INSERT INTO inbox (session, seq, kind, digest, size, term, declared, problem) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key.session,
                    key.seq,
                    arrival.kind,
                    digest,
                    len(arrival.body),
                    arrival.term,
                    arrival.declared,
                    arrival.problem,
                ),
            )
            # Before COMMIT: an accepted command always has its body.
            write_file(self._bodies / file_of(int(cursor.lastrowid or 0)), arrival.body)

    def find(self, key: Key) -> Queued | None:
        """The waiting command of that key."""
        found = self._queued("WHERE session = ? AND seq = ?", key.session, key.seq)
        return found[0] if found else None

    def next(self) -> Queued | None:
        """The first to have arrived of those whose turn it is."""
        found = self._queued(f"WHERE seq = {_APPLIED} + 1 ORDER BY number LIMIT 1")
        return found[0] if found else None

    def waiting(self, session: str) -> list[Queued]:
        """What waits of a session, by number."""
        return self._queued("WHERE session = ? ORDER BY seq", session)

    def gaps(self) -> list[Key]:
        """Of each session whose next command has not arrived, that command's key."""
        rows = self._db.rows(
            f"SELECT session, {_APPLIED} + 1 AS missing FROM inbox "
            "GROUP BY session HAVING MIN(seq) > missing"
        )
        return [Key(session, missing) for session, missing in rows]

    def count_crashes(self) -> None:
        """Counts, at a start, the commands that the trainer before was applying when it died."""
        self._db.execute(
            "UPDATE inbox SET crashes = crashes + 1 WHERE EXISTS (SELECT 1 FROM commands WHERE "
            "session = inbox.session AND seq = inbox.seq AND status IS NULL)"
        )

    def body(self, queued: Queued) -> bytes:
        """The body as it arrived; 409 if it is gone, or another."""
        return read_logged(self._bodies / queued.file, queued.digest, queued.kind, queued.key)

    def files(self) -> set[Path]:
        """The bodies that wait."""
        return {self._bodies / file_of(row[0]) for row in self._db.rows("SELECT number FROM inbox")}

    def _is_known(self, arrival: Arrival, digest: str) -> bool:
        key = arrival.key
        for table in ("inbox", "commands"):
            rows = self._db.rows(
                f"SELECT kind, digest FROM {table} WHERE session = ? AND seq = ?",
                key.session,
                key.seq,
            )
            if rows and rows[0] == (arrival.kind, digest):
                return True
            if rows and rows[0][0] != GAP:
                raise CommandError(
                    422,
                    "KeyReused",
                    f"seq_id {key.seq} of {key.session} was used for another {rows[0][0]}",
                    "give every command a number of its own; a new client needs a new model_id",
                )
        applied = self._db.rows(
            "SELECT COALESCE(MAX(seq), 0) FROM commands WHERE session = ? AND status IS NOT NULL",
            key.session,
        )[0][0]
        if key.seq <= applied:
            raise CommandError(
                422,
                "CameTooLate",
                f"seq_id {key.seq} of {key.session} arrived after what follows it, up to "
                f"{applied}, was answered; it was not applied",
                "begin the step again with forward_backward",
            )
        return False

    def _check_room(self, size: int) -> None:
        count, held = self._db.rows("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM inbox")[0]
        if count >= MOST_COMMANDS or held + size > MOST_BYTES:
            raise CommandError(
                429,
                "InboxFull",
                f"{count} commands of {held} bytes wait to be applied, and at most "
                f"{MOST_COMMANDS} of {MOST_BYTES} bytes do",
                "send it again when results have come back",
            )

    def _queued(self, condition: str, *values: Any) -> list[Queued]:
        rows: Sequence[tuple[Any, ...]] = self._db.rows(
            f"SELECT {_COLUMNS} FROM inbox {condition}", *values
        )
        return [Queued(r[0], Key(r[1], r[2]), *r[3:]) for r in rows]
