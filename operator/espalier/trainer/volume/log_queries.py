"""What a command log holds, as its trainer asks for it."""

from __future__ import annotations

from typing import Any

from espalier.api.wire.commits import Commit
from espalier.api.wire.trainer import Assignment
from espalier.trainer.volume.log_database import LogDatabase
from espalier.trainer.volume.log_records import (
    GAP,
    TINKER_GRADIENTS,
    Assigned,
    Key,
    Loaded,
    Record,
)

# Of a Tinker model before a number: what ended the batch before.
_LAST_STEP = (
    "COALESCE((SELECT MAX(seq) FROM commands WHERE session = ? AND seq < ? AND kind IN "
    "('optim-step', 'load-weights') AND status IS NOT NULL), 0)"
)
_COLUMNS = "number, session, seq, kind, digest, status, answer, checkpoint, cuts, body"


class LogQueries:
    """Reads commands, commits and the assignment; changes nothing."""

    def __init__(self, database: LogDatabase) -> None:
        self._db = database

    def find(self, key: Key) -> Record | None:
        """The command with that key."""
        rows = self._records("session = ? AND seq = ?", key.session, key.seq)
        return rows[0] if rows else None

    def latest(self, session: str) -> int | None:
        """The highest number of a session's applied commands."""
        rows = self._db.rows(
            "SELECT MAX(seq) FROM commands WHERE session = ? AND status IS NOT NULL", session
        )
        return rows[0][0] if rows[0][0] is None else int(rows[0][0])

    def since_last_step_but_one(self, session: str) -> list[Record]:
        """The session's finished commands after its last optimizer step but one, oldest first."""
        return self._records(
            "session = ? AND status IS NOT NULL AND number > COALESCE((SELECT number FROM commands "
            "WHERE session = ? AND kind = 'optim-step' AND status = 200 "
            "ORDER BY number DESC LIMIT 1 OFFSET 1), 0)",
            session,
            session,
        )

    def delivered(self, session: str) -> int:
        """The highest number whose answer is known to have reached the session; -1 if none."""
        rows = self._db.rows("SELECT seq FROM deliveries WHERE session = ?", session)
        return int(rows[0][0]) if rows else -1

    def loaded(self) -> Loaded | None:
        """What was loaded since the last step of the assignment."""
        rows = self._db.rows("SELECT digest, optimizer FROM loaded")
        return Loaded(rows[0][0], bool(rows[0][1])) if rows else None

    def assigned(self) -> Assigned | None:
        """The assignment in force."""
        rows = self._db.rows("SELECT assignment_json, since FROM assignment")
        if not rows:
            return None
        return Assigned(Assignment.model_validate_json(rows[0][0]), int(rows[0][1]))

    def commits(self) -> list[Commit]:
        """Every commit of the model, oldest first."""
        rows = self._db.rows("SELECT commit_json FROM commits ORDER BY number")
        return [Commit.model_validate_json(row[0]) for row in rows]

    def cursor(self, run: str) -> str:
        """The cursor that came with the run's last commit, as JSON."""
        rows = self._db.rows(
            "SELECT cursor_json FROM commits WHERE run = ? ORDER BY number DESC LIMIT 1", run
        )
        return str(rows[0][0]) if rows else "{}"

    def pending(self) -> list[Record]:
        """The commands whose gradients are accumulated, in the order they were applied."""
        return self._records("pending = 1")

    def unfinished(self) -> list[Record]:
        """Commands that were begun and never finished."""
        return self._records("status IS NULL")

    def forwards(self, latest: int) -> list[Record]:
        """The latest forwards under the current weights and assignment."""
        forwards = self._records("kind = 'forward' AND status = 200 AND held = 1")
        return forwards[-latest:]

    def failed_since_step(self, key: Key) -> Record | None:
        """The first gradient command of a Tinker model that failed before ``key``.

        It looks back to the model's last optimizer step, whatever became of that: a step after a
        failure drops what was accumulated.
        """
        found = self._records(
            f"session = ? AND seq < ? AND status >= 400 AND kind IN (?, ?) AND seq > {_LAST_STEP}",
            key.session,
            key.seq,
            TINKER_GRADIENTS,
            GAP,
            key.session,
            key.seq,
        )
        return found[0] if found else None

    def dropped_since_step(self, key: Key) -> Record | None:
        """The first gradients of a Tinker model before ``key`` that no step has taken, or will."""
        found = self._records(
            # Of a forward nothing is cut.
            "session = ? AND seq < ? AND kind = ? AND status = 200 AND cuts <> '' AND pending = 0 "
            f"AND seq > {_LAST_STEP}",
            key.session,
            key.seq,
            TINKER_GRADIENTS,
            key.session,
            key.seq,
        )
        return found[0] if found else None

    def _records(self, condition: str, *values: Any) -> list[Record]:
        rows = self._db.rows(
            f"SELECT {_COLUMNS} FROM commands WHERE {condition} ORDER BY number", *values
        )
        return [
            Record(r[0], Key(r[1], r[2]), r[3], r[4], r[5], r[6] or "", r[7], r[8], r[9])
            for r in rows
        ]
