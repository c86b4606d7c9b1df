"""Trajectories by trace id: the gateway's samples of a job, and the client's reports.

A file beside the command log: traces live as long as the model's volume, and every replica of the
gateway finds them. Requests are logged with their traces resolved: replay needs none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from espalier.api.platform import JobReport, TraceEnter, TraceExit, TraceRecord
from espalier.api.wire.gradients import TrajectoriesRequest
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.trace_ids import canonical, canonical_or_empty
from espalier.trainer.volume.trace_inputs import check_groups, trajectory, with_checkpoint

logger = logging.getLogger(__name__)

TRACES_FILE = "traces.sqlite"
# The oldest are forgotten beyond so many, and so many bytes of the file.
TRACES_KEPT = 50_000
BYTES_KEPT = 8 << 30
# A trace of more is refused, for it would push out all others. The longest contexts need less.
TRACE_BYTES = 256 << 20
JOBS_KEPT = 1000
# Forgotten at once, so that the file is not looked at again for each.
FORGOTTEN_AT_ONCE = 100

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, report TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS traces (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, enter TEXT, exit TEXT);
CREATE INDEX IF NOT EXISTS traces_of_jobs ON traces (json_extract(enter, '$.job_id'));
CREATE TABLE IF NOT EXISTS samples (
    trace TEXT NOT NULL, turn INTEGER NOT NULL, sample TEXT NOT NULL, PRIMARY KEY (trace, turn));
CREATE TABLE IF NOT EXISTS drawn (
    digest BLOB PRIMARY KEY, trace TEXT NOT NULL, temperature REAL, shifted TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS drawn_of_trace ON drawn (trace);
"""


def _opened(file: Path) -> sqlite3.Connection:
    """A connection to the file; a damaged file is set aside, because training does not need it."""
    try:
        return _connected(file)
    except sqlite3.DatabaseError as error:
        # Its subclasses are passing faults: a full volume, a lock.
        if type(error) is not sqlite3.DatabaseError:
            raise
        logger.error("%s is damaged and set aside, its traces are lost: %s", file, error)
        file.replace(file.with_name(f"{TRACES_FILE}.damaged"))
        file.with_name(f"{TRACES_FILE}-journal").unlink(missing_ok=True)
        return _connected(file)


def _connected(file: Path) -> sqlite3.Connection:
    made = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    try:
        made.execute("PRAGMA journal_mode = TRUNCATE")
        # A trace lost with the node's power is refused by name, so no sample waits for the disk.
        made.execute("PRAGMA synchronous = NORMAL")
        made.executescript(_SCHEMA)
        # Upgrade a file from before rollouts were kept with a step.
        if "told" not in {row[1] for row in made.execute("PRAGMA table_info(traces)")}:
            made.execute("ALTER TABLE traces ADD COLUMN told INTEGER NOT NULL DEFAULT 0")
    except BaseException:
        made.close()
        raise
    return made


class Traces:
    """SQLite under a lock: sampling writes to it while the engine's thread trains."""

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._db = _opened(directory / TRACES_FILE)

    def enter_job(self, job: str, report: JobReport) -> None:
        """Keeps the report of a job; the last one counts."""
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO jobs VALUES (?, ?)",
                (canonical(job), report.model_dump_json(exclude_none=True)),
            )
            # The newest have the highest numbers.
            self._db.execute(
                "DELETE FROM jobs WHERE rowid <= "
                "(SELECT rowid FROM jobs ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                (JOBS_KEPT,),
            )

    def enter(self, trace: str, report: TraceEnter) -> None:
        """Keeps the report of a rollout's beginning."""
        with self._lock:
            self._make(canonical(trace))
            self._db.execute(
                "UPDATE traces SET enter = ? WHERE id = ?",
                (report.model_dump_json(exclude_none=True), canonical(trace)),
            )

    def exit(self, trace: str, report: TraceExit) -> None:
        """Keeps the report of a rollout's end; 404 if it is unknown, 409 if it ended otherwise."""
        text = report.model_dump_json(exclude_none=True)
        with self._lock:
            rows = self._rows("SELECT exit FROM traces WHERE id = ?", canonical(trace))
            if not rows:
                raise CommandError(404, "TraceNotFound", f"trace {trace} is unknown here")
            if rows[0][0] not in (None, text):
                raise CommandError(
                    409, "TraceEnded", f"trace {trace} has ended with another report"
                )
            self._db.execute("UPDATE traces SET exit = ? WHERE id = ?", (text, canonical(trace)))

    def add(self, trace: str, sample: TrajectorySample) -> None:
        """Keeps a turn; one of the same prompt as the last turn replaces it: it was sent again."""
        name = canonical(trace)
        with self._lock:
            self._make(name)
            if self._rows("SELECT 1 FROM traces WHERE id = ? AND exit IS NOT NULL", name):
                raise CommandError(409, "TraceEnded", f"trace {trace} has ended")
            turns = self._samples(name)
            self._check_size(trace, name)
            self._make_room(name)
            again = bool(turns) and turns[-1].prompt_token_ids == sample.prompt_token_ids
            self._db.execute(
                "INSERT OR REPLACE INTO samples VALUES (?, ?, ?)",
                (name, len(turns) - int(again), sample.model_dump_json(exclude_none=True)),
            )
            # A sample without these two is taken for a plain one anyway.
            if sample.shifted_by or sample.temperature not in (None, 1.0):
                drawn = (sample.temperature, json.dumps(sample.shifted_by))
                self._db.execute(
                    "INSERT OR REPLACE INTO drawn VALUES (?, ?, ?, ?)",
                    (_digest(sample), name, *drawn),
                )

    def record(self, trace: str) -> TraceRecord | None:
        """Everything kept of a trace; None when it is unknown."""
        name = canonical(trace)
        with self._lock:
            rows = self._rows("SELECT enter, exit FROM traces WHERE id = ?", name)
            if not rows:
                return None
            enter, left = (json.loads(text) if text else None for text in rows[0])
            jobs = self._rows(
                "SELECT report FROM jobs WHERE id = ?",
                canonical_or_empty((enter or {}).get("job_id")),
            )
            return TraceRecord(
                id=name,
                job=json.loads(jobs[0][0]) if jobs else None,
                enter=enter,
                exit=left,
                samples=[s.model_dump(exclude_none=True) for s in self._samples(name)],
            )

    def unreported(self, ids: Collection[str]) -> list[TraceRecord]:
        """These traces, then the ended ones of their jobs that no step has kept yet."""
        known = [record for name in sorted(ids) if (record := self.record(name)) is not None]
        jobs = {job for record in known if (job := (record.enter or {}).get("job_id"))}
        with self._lock:
            others = [
                name
                for job in sorted(jobs)
                for (name,) in self._rows(
                    "SELECT id FROM traces WHERE json_extract(enter, '$.job_id') = ? "
                    "AND exit IS NOT NULL AND told = 0 ORDER BY number",
                    job,
                )
            ]
        left_out = (self.record(name) for name in others if name not in ids)
        return known + [record for record in left_out if record is not None]

    def mark_reported(self, ids: Iterable[str]) -> None:
        """Marks traces whose rollouts a step has kept."""
        with self._lock:
            self._db.executemany(
                "UPDATE traces SET told = 1 WHERE id = ?",
                [(name,) for text in ids if (name := canonical_or_empty(text))],
            )

    def resolve(self, request: TrajectoriesRequest) -> TrajectoriesRequest:
        """The request with every trace id replaced by its trajectory, in order.

        Inline samples without a temperature get the gateway's, if it drew the same tokens for a
        trace and not plainly.

        Raises:
            CommandError: 422, naming the input that is unknown, has not ended, was timed out or
                not graded, has no tokens, or stands in another group's place.
        """
        records = [self._record_of(item) for item in request.inputs]
        inputs = [
            trajectory(index, item, record)
            if isinstance(item, str)
            else with_checkpoint(self._as_drawn(item), record)
            for index, (item, record) in enumerate(zip(request.inputs, records, strict=True))
        ]
        check_groups(records, request.group_size)
        return request.model_copy(update={"inputs": inputs})

    def _record_of(self, item: str | TrajectoryPayload) -> TraceRecord | None:
        name = canonical_or_empty(item if isinstance(item, str) else item.trace_id)
        return self.record(name) if name else None

    def _as_drawn(self, inline: TrajectoryPayload) -> TrajectoryPayload:
        samples = [self._with_temperature(sample) for sample in inline.samples]
        changed = any(one is not other for one, other in zip(samples, inline.samples, strict=True))
        return inline.model_copy(update={"samples": samples}) if changed else inline

    def _with_temperature(self, sample: TrajectorySample) -> TrajectorySample:
        if sample.temperature is not None or sample.shifted_by:
            return sample
        with self._lock:
            rows = self._rows(
                "SELECT temperature, shifted FROM drawn WHERE digest = ?", _digest(sample)
            )
        if not rows:
            return sample
        temperature, shifted = rows[0]
        drawn = {"temperature": temperature, "shifted_by": json.loads(shifted)}
        return sample.model_copy(update=drawn)

    def _make(self, trace: str) -> None:
        """Makes a row for the trace; removes the oldest ones."""
        # An ignored insert would use up a number.
        if self._rows("SELECT 1 FROM traces WHERE id = ?", trace):
            return
        self._make_room(trace)
        done = self._db.execute("INSERT INTO traces (id) VALUES (?)", (trace,))
        last = (done.lastrowid or 0) - TRACES_KEPT
        self._forget(self._rows("SELECT id FROM traces WHERE number <= ?", last))

    def _make_room(self, trace: str) -> None:
        """Forgets the oldest others while the file holds more than it may."""
        while self._bytes() > BYTES_KEPT:
            oldest = self._rows(
                "SELECT id FROM traces WHERE id != ? ORDER BY number LIMIT ?",
                trace,
                FORGOTTEN_AT_ONCE,
            )
            if not oldest:
                return
            self._forget(oldest)

    def _bytes(self) -> int:
        """Bytes of the file that are in use; what was forgotten is written over."""
        ((used,),) = self._rows(
            "SELECT (page_count - freelist_count) * page_size "
            "FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
        )
        return int(used)

    def _check_size(self, trace: str, name: str) -> None:
        ((size,),) = self._rows("SELECT sum(length(sample)) FROM samples WHERE trace = ?", name)
        if (size or 0) > TRACE_BYTES:
            raise CommandError(
                413,
                "TraceTooLarge",
                f"trace {trace} has over {TRACE_BYTES >> 20} MiB of turns",
                "End it, and go on under another id",
            )

    def _forget(self, traces: Sequence[tuple[str]]) -> None:
        for table, column in (("samples", "trace"), ("drawn", "trace"), ("traces", "id")):
            self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", traces)

    def _samples(self, trace: str) -> list[TrajectorySample]:
        rows = self._rows("SELECT sample FROM samples WHERE trace = ? ORDER BY turn", trace)
        return [TrajectorySample.model_validate_json(row[0]) for row in rows]

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._db.execute(statement, values).fetchall()


def _digest(sample: TrajectorySample) -> bytes:
    """Identifies a sample by its tokens and log-probs, which depend on the temperature."""
    drawn = [sample.prompt_token_ids, sample.output_token_ids, sample.output_logprobs]
    return hashlib.sha256(json.dumps(drawn).encode()).digest()
