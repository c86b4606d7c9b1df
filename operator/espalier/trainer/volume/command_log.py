"""The command log: the applied commands in order, with their answers. It has one writer.

A command is written before it runs and finished after it; only a finished one was acknowledged.
Gradients are not kept on disk: they are the sum of the finished commands marked pending, whose
bodies are kept until an optimizer step, a zero-grad or a new assignment settles them. Commands that
are accepted before they run wait in its ``inbox``.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import suppress
from pathlib import Path

from espalier.api.wire.commits import Commit
from espalier.api.wire.trainer import Assignment
from espalier.trainer.volume import inbox, results
from espalier.trainer.volume.durable_files import volume_written
from espalier.trainer.volume.inbox import Inbox, Queued
from espalier.trainer.volume.lock import only_writer
from espalier.trainer.volume.log_bodies import Bodies
from espalier.trainer.volume.log_database import LogDatabase
from espalier.trainer.volume.log_queries import LogQueries
from espalier.trainer.volume.log_records import (
    GAP,
    Assigned,
    Key,
    Kind,
    Loaded,
    Record,
)
from espalier.trainer.volume.results import Results

__all__ = ["Assigned", "CommandLog", "Key", "Kind", "Loaded", "Record"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS commands (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL, seq INTEGER NOT NULL,
    kind TEXT NOT NULL, digest TEXT NOT NULL,
    status INTEGER, answer TEXT, checkpoint TEXT NOT NULL DEFAULT '',
    pending INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 1,
    cuts TEXT NOT NULL DEFAULT '', body TEXT NOT NULL DEFAULT '',
    UNIQUE (session, seq));
CREATE TABLE IF NOT EXISTS commits (
    number INTEGER PRIMARY KEY, run TEXT NOT NULL, commit_json TEXT NOT NULL,
    cursor_json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS assignment (
    only INTEGER PRIMARY KEY CHECK (only = 1), assignment_json TEXT NOT NULL,
    since INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (session TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS loaded (
    only INTEGER PRIMARY KEY CHECK (only = 1), digest TEXT NOT NULL, optimizer INTEGER NOT NULL);
"""


class CommandLog(LogQueries):
    """SQLite plus a file per body. Every change is one durable transaction."""

    def __init__(self, directory: Path, lock_seconds: float = 30.0) -> None:
        self._lock = only_writer(directory / "lock", lock_seconds)
        self._bodies = Bodies(directory / "bodies")
        super().__init__(LogDatabase(directory, _SCHEMA + inbox.SCHEMA + results.SCHEMA))
        # An older log's pending batches are cut again.
        self._db.add_missing_columns(
            "commands", {"cuts": "TEXT NOT NULL DEFAULT ''", "body": "TEXT NOT NULL DEFAULT ''"}
        )
        self.inbox = Inbox(self._db, self._bodies.directory)
        self._results = Results(self._db)

    def close(self) -> None:
        """Lets another process open the log."""
        self._db.close()
        self._lock.release()

    def mark_delivered(self, key: Key) -> None:
        """Logs that a command's answer has reached its session."""
        if key.seq > self.delivered(key.session):
            with volume_written(self._bodies.directory), self._db.transaction():
                self._db.execute(
                    "INSERT OR REPLACE INTO deliveries VALUES (?, ?)", (key.session, key.seq)
                )

    def begin(self, key: Key, kind: Kind, body: bytes) -> Record:
        """Logs a command that is about to run; replaces an unfinished one of the same key."""
        digest = hashlib.sha256(body).hexdigest()
        with volume_written(self._bodies.directory):
            with self._db.transaction():
                stale = self._db.rows(
                    "SELECT number FROM commands WHERE session = ? AND seq = ? AND status IS NULL",
                    key.session,
                    key.seq,
                )
                self._db.execute(
                    "DELETE FROM commands WHERE session = ? AND seq = ? AND status IS NULL",
                    (key.session, key.seq),
                )
                cursor = self._db.execute(
                    "INSERT INTO commands (session, seq, kind, digest) VALUES (?, ?, ?, ?)",
                    (key.session, key.seq, kind, digest),
                )
            number = int(cursor.lastrowid or 0)
            for (old,) in stale:
                self._bodies.remove(old)
            self._bodies.write(number, body)
        return Record(number, key, kind, digest, None, "", "", "")

    def begin_queued(self, queued: Queued) -> Record:
        """Logs a command of the inbox that is about to run; its body stays where it is."""
        key = queued.key
        with volume_written(self._bodies.directory), self._db.transaction():
            self._db.execute(
                "DELETE FROM commands WHERE session = ? AND seq = ? AND status IS NULL",
                (key.session, key.seq),
            )
            cursor = self._db.execute(
                "INSERT INTO commands (session, seq, kind, digest, body) VALUES (?, ?, ?, ?, ?)",
                (key.session, key.seq, queued.kind, queued.digest, queued.file),
            )
        number = int(cursor.lastrowid or 0)
        return Record(number, key, queued.kind, queued.digest, None, "", "", "", queued.file)

    def refuse(self, queued: Queued, status: int, answer: str) -> None:
        """Logs the answer of a command of the inbox that had no effect."""
        key = queued.key
        with volume_written(self._bodies.directory), self._db.transaction():
            self._db.execute(
                "DELETE FROM commands WHERE session = ? AND seq = ? AND status IS NULL",
                (key.session, key.seq),
            )
            self._db.execute(
                "INSERT INTO commands (session, seq, kind, digest, status, answer) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (key.session, key.seq, queued.kind, queued.digest, status, answer),
            )
            self._leave_inbox(key)
        self._bodies.drop(queued.file)

    def give_up(self, missing: Key, status: int, answer: str) -> None:
        """Logs that a number will not be waited for any longer."""
        with volume_written(self._bodies.directory), self._db.transaction():
            self._db.execute(
                "INSERT INTO commands (session, seq, kind, digest, status, answer) "
                "VALUES (?, ?, ?, '', ?, ?)",
                (missing.session, missing.seq, GAP, status, answer),
            )

    def abandon(self, record: Record) -> None:
        """Forgets a command that had no effect, so that its key can be sent again.

        On a full or read-only volume the row stays: the next ``begin`` of the key or the next
        start removes it. A finished command is never forgotten.
        """
        with suppress(sqlite3.OperationalError, OSError):
            gone = self._db.execute(
                "DELETE FROM commands WHERE number = ? AND status IS NULL", (record.number,)
            )
            # One that came by the inbox still waits there, with its body.
            if gone.rowcount and not record.body:
                self._bodies.remove(record.number)

    def finish(self, record: Record, status: int, answer: str, result: bytes = b"") -> None:
        """Logs a command's answer, and beside it the ``result`` that its client reads."""
        with volume_written(self._bodies.directory), self._db.transaction():
            self._finish(record, status, answer, "")
            self._results.keep(record.number, result)
        if record.body:
            self._bodies.drop(record.body)

    def accumulate(
        self, record: Record, answer: str, cuts: str, result: bytes = b"", referred: bytes = b""
    ) -> None:
        """Logs a command whose gradients wait for an optimizer step, and how it was cut.

        ``referred`` are the log-probs of the policy that it is held near: whatever becomes of that
        policy's checkpoint, they are kept as long as the gradients wait.
        """
        with volume_written(self._bodies.directory):
            if referred:
                self._bodies.write_referred(record.number, referred)
            with self._db.transaction():
                self._finish(record, 200, answer, "")
                self._results.keep(record.number, result)
                self._db.execute(
                    "UPDATE commands SET pending = 1, cuts = ? WHERE number = ?",
                    (cuts, record.number),
                )

    def settle(self, record: Record, status: int, answer: str) -> None:
        """Logs an answer together with the end of all pending gradients."""
        with volume_written(self._bodies.directory), self._db.transaction():
            self._finish(record, status, answer, "")
            self._end_pending()
        self._drop_bodies()

    def drop_pending(self) -> None:
        """Logs the end of all pending gradients: nobody will step on them. Forwards are kept."""
        with volume_written(self._bodies.directory), self._db.transaction():
            self._db.execute("UPDATE commands SET pending = 0 WHERE pending = 1")
        self._drop_bodies()

    def commit(self, record: Record, answer: str, commit: Commit, cursor: str) -> None:
        """Logs an optimizer step: its answer, its commit, and the end of pending gradients."""
        with volume_written(self._bodies.directory), self._db.transaction():
            self._finish(record, 200, answer, commit.digest)
            self._end_pending()
            self._db.execute("DELETE FROM loaded")
            self._db.execute(
                "INSERT INTO commits (number, run, commit_json, cursor_json) VALUES (?, ?, ?, ?)",
                (commit.index, commit.run, commit.model_dump_json(), cursor),
            )
        self._drop_bodies()

    def load(self, record: Record, answer: str, loaded: Loaded) -> None:
        """Logs that other weights are in force, and the end of all pending gradients."""
        with volume_written(self._bodies.directory), self._db.transaction():
            self._finish(record, 200, answer, "")
            self._end_pending()
            self._db.execute(
                "INSERT OR REPLACE INTO loaded VALUES (1, ?, ?)", (loaded.digest, loaded.optimizer)
            )
        self._drop_bodies()

    def assign(self, assignment: Assignment, *, since: int, rebased: bool) -> None:
        """Logs an assignment; a re-base also ends pending gradients."""
        with volume_written(self._bodies.directory), self._db.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO assignment VALUES (1, ?, ?)",
                (assignment.model_dump_json(), since),
            )
            if rebased:
                self._end_pending()
                self._db.execute("DELETE FROM loaded")
        if rebased:
            self._drop_bodies()

    def body(self, record: Record) -> bytes:
        """The request of a command whose body is kept; 409 if it is gone, or another."""
        return self._bodies.read(record)

    def referred(self, record: Record) -> bytes:
        """The log-probs of the policy that a pending command is held near; empty if none are kept.

        A log of an earlier version has none. 409 for what is no file.
        """
        return self._bodies.referred(record)

    def result(self, record: Record) -> bytes | None:
        """What the client of a command reads; None if there was none, or it is kept no longer."""
        return self._results.find(record.number)

    def _finish(self, record: Record, status: int, answer: str, checkpoint: str) -> None:
        self._db.execute(
            "UPDATE commands SET status = ?, answer = ?, checkpoint = ? WHERE number = ?",
            (status, answer, checkpoint, record.number),
        )
        if record.body:
            self._leave_inbox(record.key)

    def _leave_inbox(self, key: Key) -> None:
        self._db.execute("DELETE FROM inbox WHERE session = ? AND seq = ?", (key.session, key.seq))

    def _end_pending(self) -> None:
        self._db.execute("UPDATE commands SET pending = 0 WHERE pending = 1")
        self._db.execute("UPDATE commands SET held = 0 WHERE held = 1 AND status IS NOT NULL")

    def _drop_bodies(self) -> None:
        """Removes bodies that are no longer needed; a failure leaves them for the next call.

        The transaction before it is durable, so an error of the volume must not undo the command.
        """
        # Under the lock: what arrives meanwhile has its file before it is in the inbox.
        with suppress(OSError), self._db.lock:
            rows = self._db.rows(
                "SELECT number, body FROM commands WHERE status IS NULL "
                "OR (kind = 'forward' AND held = 1)"
            )
            self._bodies.keep_only(((row[0], row[1]) for row in rows), self.inbox.files())
