"""Lists the checkpoints of a model on a volume: ``python -m espalier.trainer.jobs.adoption``.

Checks every byte against its digest and writes nothing. Prints one JSON object a line: a checkpoint
as ``{"commit": …}``, a directory that is not one as ``{"path": …, "refused": why}``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from espalier.trainer.engine.checkpoint_files import STATE_FILE, StepState, commit_of
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError


def survey(store: CheckpointStore, model: str, base: str = "") -> Iterator[dict[str, Any]]:
    """The directories among the checkpoints; ``base`` is the digest of the base they must have."""
    for name, stored in store.survey(model):
        if isinstance(stored, DigestError):
            yield {"path": name, "refused": str(stored)}
            continue
        manifest = stored.manifest
        if manifest.get("model") != model:
            continue
        if manifest["step"] < 1:
            yield {"path": name, "refused": "an imported adapter, from before the first step"}
        elif base and manifest["base"] != base:
            yield {"path": name, "refused": f"trained on another base, {manifest['base']}"}
        else:
            try:
                store.verify("checkpoint", stored.digest)
                state = StepState.model_validate_json((stored.path / STATE_FILE).read_text())
            except (DigestError, ValidationError, OSError) as error:
                yield {"path": name, "refused": str(error)}
                continue
            made = datetime.fromtimestamp((stored.path / STATE_FILE).stat().st_mtime, UTC)
            created = made.strftime("%Y-%m-%dT%H:%M:%SZ")
            yield {"commit": commit_of(stored, state, 1, created).model_dump()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: always 0, because each line reports its own fault."""
    parser = argparse.ArgumentParser(description="Lists the checkpoints of a model on a volume")
    parser.add_argument("--model", required=True)
    parser.add_argument("--base", default="", help="digest of the base that they must be of")
    parser.add_argument("--volume", type=Path, default=os.environ.get("ESPALIER_VOLUME"))
    given = parser.parse_args(arguments)
    store = CheckpointStore(Path(given.volume), given.model)
    for line in survey(store, given.model, given.base):
        print(json.dumps(line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
