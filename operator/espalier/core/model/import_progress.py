"""How far an import is, in figures and for people."""

from __future__ import annotations

from espalier.api.source import ImportProgress
from espalier.api.trainablemodel import TrainableModel
from espalier.api.wire.import_state import ImportState


def told(state: ImportState | None) -> ImportProgress | None:
    """What the pod says, within its own bounds; None before it knows what there is to do."""
    if state is None or not state.total_bytes:
        return None
    done = min(state.done_bytes, state.total_bytes)
    return ImportProgress(
        done_bytes=done,
        total_bytes=state.total_bytes,
        bytes_per_second=state.bytes_per_second,
        percent=100 * done // state.total_bytes,
    )


def whole(model: TrainableModel) -> ImportProgress | None:
    """What the importer said last, now that all of it is there."""
    last = model.status.import_progress
    if last is None:
        return None
    there = {"done_bytes": last.total_bytes, "bytes_per_second": 0, "percent": 100}
    return last.model_copy(update=there)


def shown(progress: ImportProgress) -> str:
    """For people: 1.2 GiB of 4.0 GiB, 30%, 95.0 MiB/s."""
    if progress.done_bytes == progress.total_bytes:
        return f"all {_size(progress.total_bytes)} are there, and are checked"
    done, total = _size(progress.done_bytes), _size(progress.total_bytes)
    rate = _size(progress.bytes_per_second)
    return f"{done} of {total}, {progress.percent}%, {rate}/s"


def _size(count: int) -> str:
    """Bytes, for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"
