"""Removes the bytes of deleted checkpoints: ``python -m espalier.trainer.jobs.collector``.

It refuses checkpoints of other models, and those that the model's trainer needs when it starts.
Leaves ``{"removed": count, "kept": {digest: why}}`` in the termination log.
"""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from espalier.core.volume import is_digest
from espalier.process import configure_logs, leave_message
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError
from espalier.trainer.volume.log_admin import forget, resumes_from

# The termination log holds 4096 bytes.
_TOLD = 24
_REASON_CHARS = 60


def collect(
    store: CheckpointStore, model: str, digests: Sequence[str], *, orphaned: bool
) -> dict[str, str]:
    """Removes checkpoints; returns by digest why others were kept. An absent one counts as removed.

    With ``orphaned`` the model is gone: nothing resumes, and its log goes with its last checkpoint.
    """
    store.sweep()
    log = store.model_path(model)
    needed = frozenset[str]() if orphaned else resumes_from(log)
    kept: dict[str, str] = {}
    for digest in digests:
        reason = _refusal(store, model, digest, needed)
        if reason:
            kept[digest] = reason
    if orphaned and not any(store.checkpoints(model)):
        forget(log)
    return kept


def _refusal(store: CheckpointStore, model: str, digest: str, needed: frozenset[str]) -> str:
    """Why a checkpoint stays; empty once it is gone."""
    if not is_digest(digest):
        return "it is no digest"
    if digest in needed:
        return "the trainer resumes from it"
    if not store.has("checkpoint", digest):
        return ""
    try:
        stored = store.open("checkpoint", digest)
    except DigestError as error:
        return f"its directory is damaged: {error}"
    if stored.manifest["model"] != model:
        return f"it is a checkpoint of model {stored.manifest['model']}"
    store.discard(stored)
    return "the volume could not be written" if store.has("checkpoint", digest) else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 once every digest is handled, 1 for a fault that may pass."""
    parser = argparse.ArgumentParser(description="Removes the bytes of deleted checkpoints")
    parser.add_argument("--model", required=True)
    parser.add_argument("--orphaned", action="store_true", help="the model itself is gone")
    parser.add_argument("digests", nargs="+")
    given = parser.parse_args(arguments)
    root = Path(os.environ.get("ESPALIER_VOLUME", "/weights"))
    store = CheckpointStore(root, given.model, f"collector-{given.model}")
    kept = collect(store, given.model, given.digests, orphaned=given.orphaned)
    shown = {digest: why[:_REASON_CHARS] for digest, why in [*kept.items()][:_TOLD]}
    leave_message({"removed": len(given.digests) - len(kept), "kept": shown})
    return 0


if __name__ == "__main__":
    configure_logs()
    raise SystemExit(main())
