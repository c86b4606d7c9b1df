"""Exports a checkpoint in a common format: ``python -m espalier.trainer.jobs.export``.

Either PEFT's adapter directory, or with ``--merged`` a Hugging Face model of base and adapter; the
tokenizer lies beside it in both. A full checkpoint is a Hugging Face model either way.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.api.exit_codes import USER_MISTAKE
from espalier.core.volume import DIGEST_PREFIX
from espalier.trainer.engine.checkpoint_files import STATE_FILE, StepState, adapter_type
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.volume.checkpoint_store import (
    CheckpointStore,
    DigestError,
    Stored,
    Verified,
)
from espalier.trainer.volume.durable_files import STAGING, sync
from espalier.trainer.volume.peft_adapter import CONFIG, WEIGHTS
from espalier.trainer.volume.tensor_files import OPTIMIZER_FOLDER
from espalier.unchanged import ChangedError

# ``base`` means the dtype in the base's config.json.
DTYPES = ("base", "float32", "bfloat16", "float16")
# Files of a full checkpoint that are not part of the model.
_OF_THE_STEP = (STATE_FILE, "metrics.jsonl", "rollouts.jsonl")
# Files of a base that describe its weights; an adapter's directory must not have them.
_OF_THE_WEIGHTS = ("config.json", "generation_config.json", "*.safetensors*", "manifest.json")


@dataclass(frozen=True)
class Wanted:
    """``base_name`` is the base's name in the adapter's configuration."""

    merged: bool = False
    dtype: str = "base"
    base_name: str = "base"


def find(store: CheckpointStore, wanted: str) -> Verified:
    """The verified checkpoint of a name or digest; raises UserMistakeError."""
    digest = wanted if wanted.startswith(DIGEST_PREFIX) else _digest_of(store, wanted)
    return _verified(store, "checkpoint", digest)


def write(store: CheckpointStore, checkpoint: Verified, staged: Path, wanted: Wanted) -> None:
    """Fills ``staged``; base and checkpoint are verified.

    Raises:
        UserMistakeError: they are damaged.
        ChangedError: one of them was changed meanwhile.
    """
    base = _verified(store, "base", str(checkpoint.manifest["base"]))
    fill = _write_full if adapter_type(checkpoint) == "Full" else _write_lora
    fill(base, checkpoint, staged, wanted)
    for read in (base, checkpoint):
        read.noted.check()


@contextmanager
def replacing(output: Path, *, force: bool) -> Iterator[Path]:
    """An empty directory that becomes ``output`` whole if the block succeeds.

    Raises UserMistakeError if there is such a directory and ``force`` is not set.
    """
    if output.exists() and not force:
        raise UserMistakeError(
            "OutputExists", f"{output} exists", "name another directory, or give --force"
        )
    token = uuid.uuid4().hex
    staged, old = (output.parent / f"{STAGING}{part}-{token}" for part in ("new", "old"))
    staged.mkdir(parents=True)
    try:
        yield staged
        for path in staged.rglob("*"):
            sync(path)
        if output.exists():
            output.rename(old)
        staged.rename(output)
        sync(output.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_full(base: Stored, checkpoint: Stored, staged: Path, wanted: Wanted) -> None:
    """Writes the model in float32; rounds once if a merged one is asked for."""
    for name in checkpoint.manifest["files"]:
        if name in _OF_THE_STEP or name.startswith(f"{OPTIMIZER_FOLDER}/"):
            continue
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.path / name, staged / name)
    if not wanted.merged:
        return
    # Imported here: an export without rounding does not need them.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    dtype = _base_dtype(base) if wanted.dtype == "base" else getattr(torch, wanted.dtype)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=dtype, local_files_only=True
    )
    for path in staged.glob("*.safetensors*"):
        path.unlink()
    causal_lm.save_pretrained(staged)


def _write_lora(base: Stored, checkpoint: Stored, staged: Path, wanted: Wanted) -> None:
    if wanted.merged:
        _write_merged(base, checkpoint, staged, wanted.dtype)
    else:
        _write_adapter(checkpoint, staged, wanted.base_name)
    for name in base.manifest["files"]:
        if any(Path(name).match(pattern) for pattern in _OF_THE_WEIGHTS):
            continue
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base.path / name, target)


def _write_adapter(checkpoint: Stored, staged: Path, base_name: str) -> None:
    shutil.copyfile(checkpoint.path / WEIGHTS, staged / WEIGHTS)
    config = json.loads((checkpoint.path / CONFIG).read_text())
    config["base_model_name_or_path"] = base_name
    (staged / CONFIG).write_text(json.dumps(config, sort_keys=True, indent=1))


def _write_merged(base: Stored, checkpoint: Stored, staged: Path, dtype: str) -> None:
    """Adds base and adapter in float32 and rounds once to ``dtype``."""
    # Imported here: the export of an adapter does not need them.
    import torch  # noqa: PLC0415
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    causal_lm = AutoModelForCausalLM.from_pretrained(
        base.path, dtype=torch.float32, local_files_only=True
    )
    peft: Any = PeftModel.from_pretrained(causal_lm, checkpoint.path)
    merged = peft.merge_and_unload(safe_merge=True)
    merged.to(_base_dtype(base) if dtype == "base" else getattr(torch, dtype))
    merged.save_pretrained(staged)


def _base_dtype(base: Stored) -> Any:
    import torch  # noqa: PLC0415
    from transformers import AutoConfig  # noqa: PLC0415

    return AutoConfig.from_pretrained(base.path, local_files_only=True).dtype or torch.float32


def _digest_of(store: CheckpointStore, name: str) -> str:
    """The digest of a name, which a fenced commit and its successor may share."""
    digests = [
        stored.digest
        for stored in store.checkpoints()
        if StepState.model_validate_json((stored.path / STATE_FILE).read_text()).name == name
    ]
    if len(digests) == 1:
        return digests[0]
    raise UserMistakeError(
        "CheckpointAmbiguous" if digests else "CheckpointNotFound",
        f"the volume holds {len(digests)} checkpoints of the name {name}: {', '.join(digests)}"
        if digests
        else f"the volume holds no checkpoint of the name {name}",
        "name the checkpoint by its digest: spec.digest of the Checkpoint",
    )


def _verified(store: CheckpointStore, kind: Any, digest: str) -> Verified:
    try:
        return store.verify(kind, digest)
    except DigestError as error:
        raise UserMistakeError(
            "CheckpointUnreadable", str(error), "restore the volume, or export another checkpoint"
        ) from error


def export(volume: Path, checkpoint: str, output: Path, wanted: Wanted, *, force: bool) -> Stored:
    """Writes a checkpoint, given by name or digest, to ``output``; raises UserMistakeError."""
    store = CheckpointStore(volume, "")
    source = find(store, checkpoint)
    with replacing(output, force=force) as staged:
        write(store, source, staged, wanted)
    return source


def main() -> int:
    """The exit code: 0, or 64 for a user's mistake."""
    parser = argparse.ArgumentParser(description="Exports a checkpoint of a volume")
    parser.add_argument("checkpoint", help="name or digest")
    parser.add_argument("--volume", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--merged", action="store_true")
    parser.add_argument("--dtype", choices=DTYPES, default="base", help="of a merged model")
    parser.add_argument("--base-name", default="base", help="what the adapter calls its base")
    parser.add_argument("--force", action="store_true", help="replace the output")
    given = parser.parse_args()
    wanted = Wanted(given.merged, given.dtype, given.base_name)
    try:
        exported = export(given.volume, given.checkpoint, given.output, wanted, force=given.force)
    except (UserMistakeError, CommandError, ChangedError) as error:
        problem = error.problem
        print(f"{problem.reason}: {problem.detail}: {problem.remedy}", file=sys.stderr)
        return USER_MISTAKE
    print(f"wrote {exported.digest} to {given.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
