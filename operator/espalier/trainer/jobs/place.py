"""Puts in place what an importer brought: ``python -m espalier.trainer.jobs.place``.

It takes the arguments of ``importer``, and runs after it. Whatever strangers' bytes made of the
importer, this opens none of them: it reads a small report, hashes plain files and renames their
folder. Prints and leaves in the termination log its result, ``{"uri", "revision", "digest"}`` of
the base, its ``contextTokens`` and whether a ``chatTemplate`` is there, and ``"adapter": {"digest",
"sizeBytes"}``; or a Problem.
"""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from espalier import process
from espalier.api.exit_codes import FAULT, USER_MISTAKE
from espalier.api.model.adapter import Adapter
from espalier.api.source import ImportedAdapter, Resolved
from espalier.api.wire.problem import Problem
from espalier.core.volume import MANIFEST
from espalier.trainer.jobs.import_order import CONVERTED, Order
from espalier.trainer.jobs.import_report import ImportReport, refused
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.volume.base_files import PATTERNS
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError, Stored
from espalier.trainer.volume.durable_files import emptied, volume_written
from espalier.trainer.volume.staged_files import StrangeFileError, measured

NOTHING_PROMISED: Mapping[str, str] = {}


class DamagedError(Exception):
    """The bytes differ from their source's; another try may fetch them whole."""


def place_base(
    store: CheckpointStore, staged: Path, promised: Mapping[str, str] = NOTHING_PROMISED
) -> Stored:
    """Makes a staged folder the base of its digest; the same files give the same digest.

    ``promised`` are the SHA-256 of files that their source gives.

    Raises:
        StrangeFileError: the folder holds what is no file of a base.
        DamagedError: a file is not what was promised.
        UserMistakeError: another base lies there, damaged.
    """
    files = measured(staged, _is_of_a_base)
    for name, digest in promised.items():
        if name in files and files[name]["sha256"] != digest:
            raise DamagedError(f"{name} is not what its source promises: its SHA-256 differs")
    try:
        return store.place("base", staged, files, {})[0]
    except DigestError as error:
        raise UserMistakeError(
            "BaseUnreadable",
            f"the same base is on the volume, and damaged: {error}",
            "delete its directory below bases, and then the importer's Job",
        ) from error


def place_adapter(
    store: CheckpointStore,
    staged: Path,
    target_modules: list[str],
    adapter: Adapter,
    *,
    model: str,
    base: str,
) -> Stored:
    """Copies a staged adapter's files, and makes of the copies a model's step 0."""
    # Imported here: placing a base needs no torch.
    from espalier.trainer.engine import imported_adapter  # noqa: PLC0415

    return imported_adapter.commit(store, staged, target_modules, adapter, model=model, base=base)


def placed(order: Order) -> Resolved:
    """Puts in place what the importer of this order brought."""
    store = CheckpointStore(order.volume, order.model, f"importer-{order.staging.name}")
    store.sweep()
    report = ImportReport.read(order.staging)
    try:
        if order.base is not None:
            base = place_base(store, order.staging / order.base.staged, report.promised)
        else:
            base = _known_base(store, order.digest)
        adapter = _placed_adapter(store, order, report, base.digest)
    except StrangeFileError as error:
        raise refused(f"what the importer brought is refused: {error}") from error
    return Resolved(
        uri=f"file://{base.path}",
        revision=order.base.revision if order.base else "",
        digest=base.digest,
        context_tokens=report.context_tokens,
        chat_template=report.chat_template,
        unstopped_turn_end=report.turn_end,
        adapter=adapter,
    )


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 64 for a user's mistake, 1 if a retry may succeed."""
    order = Order.read(sys.argv[1:] if arguments is None else arguments)
    try:
        with volume_written(order.staging):
            resolved = placed(order)
    except CommandError as error:
        # What has come is kept: the volume may be enlarged.
        process.leave_problem(error.problem)
        return USER_MISTAKE
    except UserMistakeError as error:
        _forget(order.staging)
        process.leave_problem(error.problem)
        return USER_MISTAKE
    except DamagedError as error:
        _forget(order.staging)
        damaged = Problem(reason="DownloadDamaged", detail=str(error), remedy="check the mirror")
        process.leave_problem(damaged)
        return FAULT
    _forget(order.staging)
    process.leave_message(resolved.wire())
    return 0


def _placed_adapter(
    store: CheckpointStore, order: Order, report: ImportReport, base: str
) -> ImportedAdapter | None:
    if (order.adapter is None) != (report.target_modules is None):
        raise refused("the importer's report is of another order: an adapter is in one of them")
    if report.target_modules is None:
        return None
    staged = order.staging / CONVERTED
    stored = place_adapter(
        store, staged, report.target_modules, order.wanted, model=order.model, base=base
    )
    return ImportedAdapter(digest=stored.digest, size_bytes=stored.size_bytes)


def _known_base(store: CheckpointStore, digest: str) -> Stored:
    try:
        return store.verify("base", digest)
    except DigestError as error:
        raise UserMistakeError("BaseUnreadable", str(error), "import the base first") from error


def _is_of_a_base(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    known = any(path.match(pattern) for pattern in PATTERNS)
    return known and not hidden and path.name != MANIFEST


def _forget(staging: Path) -> None:
    """Removes what was brought, and its folder."""
    emptied(staging)
    with suppress(OSError):
        staging.rmdir()


if __name__ == "__main__":
    process.configure_logs()
    raise SystemExit(main())
