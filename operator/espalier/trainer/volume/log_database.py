"""The SQLite file of a model's log: durable transactions that two threads share."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOG_FILE = "log.sqlite"


class LogDatabase:
    """One connection behind a lock.

    The engine's thread writes what it applies, and another what arrives meanwhile. Both hold the
    lock for one short transaction, so that neither waits for a computation.
    """

    def __init__(self, directory: Path, schema: str) -> None:
        self.lock = threading.RLock()
        self._connection = sqlite3.connect(
            directory / LOG_FILE, isolation_level=None, check_same_thread=False
        )
        # A rollback journal works on network volumes, where a write-ahead log does not.
        self.execute("PRAGMA journal_mode = TRUNCATE")
        self.execute("PRAGMA synchronous = FULL")
        for statement in filter(str.strip, schema.split(";")):
            self.execute(statement)

    def close(self) -> None:
        """Lets another process open the file; later statements fail."""
        # SQLite ends the process if another thread is in the midst of a statement.
        with self.lock:
            self._connection.close()

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """One statement, durable at once outside of a transaction."""
        with self.lock:
            return self._connection.execute(statement, values)

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self.lock:
            return self._connection.execute(statement, values).fetchall()

    def add_missing_columns(self, table: str, columns: dict[str, str]) -> None:
        """Adds the columns that an older file lacks; a value is the column's declaration."""
        known = {row[1] for row in self.rows(f"PRAGMA table_info({table})")}
        for name, declaration in columns.items():
            if name not in known:
                self.execute(f"ALTER TABLE {table} ADD COLUMN {name} {declaration}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements of the block or none; durable when it ends."""
        with self.lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
