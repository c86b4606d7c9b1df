"""Access to a command log from outside its trainer: read the position, delete the log."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from espalier.api.wire.commits import Commit
from espalier.api.wire.trainer import Assignment
from espalier.trainer.volume.lock import LogBusyError, only_writer
from espalier.trainer.volume.log_database import LOG_FILE


def resumes_from(directory: Path) -> frozenset[str]:
    """The digests that a starting trainer needs: of its assignment, its last commit and its load.

    Reads beside a trainer that may have the log open.
    """
    path = directory / LOG_FILE
    if not path.is_file():
        return frozenset()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assigned = connection.execute("SELECT assignment_json FROM assignment").fetchall()
        last = connection.execute(
            "SELECT commit_json FROM commits ORDER BY number DESC LIMIT 1"
        ).fetchall()
        # A log of an older trainer has no such table.
        known = connection.execute("SELECT name FROM sqlite_master WHERE name = 'loaded'")
        rows = connection.execute("SELECT digest FROM loaded") if known.fetchall() else ()
        loaded = {row[0] for row in rows}
    bases = {Assignment.model_validate_json(row[0]).base for row in assigned}
    return frozenset(bases | loaded | {Commit.model_validate_json(row[0]).digest for row in last})


def forget(directory: Path) -> bool:
    """Removes a model's log with its bodies; False while a trainer has it open."""
    if not directory.is_dir():
        return True
    try:
        lock = only_writer(directory / "lock", 0.0)
    except LogBusyError:
        return False
    try:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        lock.release()
    return True
