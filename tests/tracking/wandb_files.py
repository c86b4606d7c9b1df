"""Reads what W&B writes with mode ``offline``: a log of records in blocks, as LevelDB's."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.tracking.tracker import package

_BLOCK, _HEADER = 32768, 7
_FULL, _LAST = 1, 4
_SECONDS = 20.0


@dataclass
class OfflineRun:
    """The run of one file."""

    id: str = ""
    project: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False


def offline_runs(directory: Path) -> list[OfflineRun]:
    """The runs in W&B's directory, oldest first: one for each start.

    W&B's own process writes them, and may be at it still when ``finish`` returns.
    """
    until = time.monotonic() + _SECONDS
    while True:
        files = sorted(directory.rglob("*.wandb"), key=lambda file: file.stat().st_mtime)
        runs = [_run(file) for file in files]
        if all(run.ended for run in runs):
            return runs
        assert time.monotonic() < until, f"W&B did not end its files: {runs}"
        time.sleep(0.05)


def _run(file: Path) -> OfflineRun:
    read = OfflineRun()
    for record in _records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            read.id, read.project = record.run.run_id, record.run.project
            read.name = record.run.display_name
        elif kind == "config":
            read.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            read.history.append(row)
        elif kind == "exit":
            read.ended = True
    return read


def _records(data: bytes) -> Iterator[Any]:
    messages = package("wandb.proto.wandb_internal_pb2", "wandb")
    at, content = _HEADER, b""
    while at + _HEADER <= len(data):
        room = _BLOCK - at % _BLOCK
        if room < _HEADER:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        at += _HEADER
        if at + length > len(data):
            return  # It is being written.
        content += data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            record = messages.Record()
            record.ParseFromString(content)
            content = b""
            yield record
