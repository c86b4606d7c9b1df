"""The results that clients of the inbox read: the log-probs of a batch, too many for an answer."""

from __future__ import annotations

from espalier.trainer.volume.log_database import LogDatabase

SCHEMA = """
CREATE TABLE IF NOT EXISTS results (number INTEGER PRIMARY KEY, content BLOB NOT NULL);
"""
# The oldest go when there are more: a client reads its results soon, or not at all.
MOST = 1024
MOST_BYTES = 256 << 20


class Results:
    """Results by the number of their command in the log."""

    def __init__(self, database: LogDatabase) -> None:
        self._db = database

    def keep(self, number: int, content: bytes) -> None:
        """Keeps a result, in the transaction under way, and drops the oldest of too many."""
        if not content:
            return
        self._db.execute("INSERT INTO results VALUES (?, ?)", (number, content))
        self._db.execute(
            "DELETE FROM results WHERE number IN (SELECT number FROM (SELECT number, "
            "ROW_NUMBER() OVER newest AS place, SUM(LENGTH(content)) OVER newest AS total "
            "FROM results WINDOW newest AS (ORDER BY number DESC)) WHERE place > ? OR total > ?)",
            (MOST, MOST_BYTES),
        )

    def find(self, number: int) -> bytes | None:
        """A result that is still kept."""
        rows = self._db.rows("SELECT content FROM results WHERE number = ?", number)
        return bytes(rows[0][0]) if rows else None
