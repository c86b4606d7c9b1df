"""Copies a base model to the volume, once: ``python -m espalier.trainer.importer``.

With ``--adapter`` it also takes over a LoRA adapter from outside, as step 0 of a model on the base.
Prints and leaves in the termination log what it found, ``{"uri", "revision", "digest"}`` of the
base and ``"adapter": {"digest", "sizeBytes"}``, or a Problem.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from espalier.api.trainablemodel import Adapter
from espalier.trainer.problems import (
    EXIT_USER_MISTAKE,
    CommandError,
    UserMistakeError,
    leave_message,
)
from espalier.trainer.store import CheckpointStore, DigestError, Stored

# What a base needs to be trained and served; weights in other formats are left behind.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_HUB = "OWNER/NAME@REVISION"


def import_directory(store: CheckpointStore, source: Path) -> Stored:
    """The model in ``source`` as a base; the same files again give the same digest."""
    files = model_files(source)
    with store.staging("base") as staged:
        for path in files:
            target = staged / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return store.commit("base", staged, {})[0]


def import_hugging_face(store: CheckpointStore, repository: str, revision: str) -> Stored:
    """A model of the Hugging Face hub at a commit."""
    with store.staging("base") as staged:
        _download(repository, revision, staged, "spec.source.base.huggingFace")
        model_files(staged)
        return store.commit("base", staged, {})[0]


def _download(repository: str, revision: str, target: Path, field: str) -> None:
    # Imported here so that importing from a directory needs no hub client.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        snapshot_download(
            repository, revision=revision, local_dir=target, allow_patterns=list(PATTERNS)
        )
    except HfHubHTTPError as error:
        raise UserMistakeError(
            "BaseUnreadable",
            f"{field}: {repository}@{revision} cannot be read from the hub: {error}",
            "check the repository and the revision; gated models need an image or a claim",
        ) from error
    shutil.rmtree(target / ".cache", ignore_errors=True)


def import_adapter(
    store: CheckpointStore, source: Path, adapter: Adapter, *, model: str, base: str
) -> Stored:
    """The adapter in ``source`` as a model's step 0; raises UserMistakeError if it does not fit."""
    # Imported here so that importing a base needs no torch.
    from espalier.trainer import adapters, checkpoints  # noqa: PLC0415
    from espalier.trainer.lora import adapter_shapes  # noqa: PLC0415

    if adapter.type != "LoRA":
        raise UserMistakeError(
            "AdapterMismatch",
            f"spec.adapter.type is {adapter.type}, and an adapter fits LoRA alone",
            "import it for a model of type LoRA, or merge it into its base and fork from that",
        )
    found = _known_base(store, base)
    parameters = adapters.read(source, adapter, adapter_shapes(found.path, adapter))
    return checkpoints.write_imported(store, parameters, adapter, model=model, base=base)


def _known_base(store: CheckpointStore, digest: str) -> Stored:
    try:
        return store.verify("base", digest)
    except DigestError as error:
        raise UserMistakeError("BaseUnreadable", str(error), "import the base first") from error


def model_files(source: Path) -> list[Path]:
    """The files of a base in ``source``; raises UserMistakeError if it is none."""
    if not source.is_dir():
        raise UserMistakeError(
            "BaseUnreadable", f"{source} is no directory", "check spec.source.base"
        )
    files = sorted(
        path
        for path in source.rglob("*")
        if path.is_file()
        and any(path.match(pattern) for pattern in PATTERNS)
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )
    names = {path.relative_to(source).as_posix() for path in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise UserMistakeError(
            "BaseUnreadable",
            f"{source} holds no config.json with *.safetensors beside it",
            "an image needs the model under /models; weights must be in safetensors",
        )
    try:
        json.loads((source / "config.json").read_text())
    except ValueError as error:
        raise UserMistakeError(
            "BaseUnreadable", f"config.json is not JSON: {error}", "mend the model's files"
        ) from error
    return files


def main() -> int:
    """The exit code: 0, 64 for a user's mistake, 1 for what may pass when tried again."""
    parser = argparse.ArgumentParser(description="Copies a base model to the volume")
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--directory", type=Path)
    base.add_argument("--hugging-face", metavar=_HUB)
    base.add_argument("--base", metavar="DIGEST", help="a base that is on the volume already")
    adapter = parser.add_mutually_exclusive_group()
    adapter.add_argument("--adapter", type=Path, help="a LoRA adapter of PEFT; needs --model")
    adapter.add_argument("--adapter-hugging-face", metavar=_HUB)
    parser.add_argument("--model", default="", help="whose step 0 the adapter becomes")
    given = parser.parse_args()
    with_adapter = given.adapter is not None or given.adapter_hugging_face is not None
    if with_adapter != bool(given.model) or (given.base is not None and not with_adapter):
        parser.error("an adapter needs --model, and --base and --model need an adapter")
    store = CheckpointStore(Path(os.environ.get("ESPALIER_VOLUME", "/weights")), "importer")
    try:
        report = _import_base(store, given)
        if with_adapter:
            report["adapter"] = _import_adapter(store, given, str(report["digest"]))
    except (UserMistakeError, CommandError) as error:
        leave_message(error.problem.model_dump())
        return EXIT_USER_MISTAKE
    leave_message(report)
    return 0


def _import_base(store: CheckpointStore, given: argparse.Namespace) -> dict[str, object]:
    revision = ""
    if given.base is not None:
        stored = _known_base(store, given.base)
    elif given.directory is not None:
        stored = import_directory(store, given.directory)
    else:
        repository, revision = _repository(given.hugging_face)
        stored = import_hugging_face(store, repository, revision)
    return {"uri": f"file://{stored.path}", "revision": revision, "digest": stored.digest}


def _import_adapter(
    store: CheckpointStore, given: argparse.Namespace, base: str
) -> dict[str, object]:
    wanted = Adapter.model_validate_json(os.environ.get("ESPALIER_ADAPTER", "{}"))
    with TemporaryDirectory() as scratch:
        source = given.adapter or Path(scratch)
        if given.adapter is None:
            repository, revision = _repository(given.adapter_hugging_face)
            _download(repository, revision, source, "spec.source.adapter.huggingFace")
        stored = import_adapter(store, source, wanted, model=given.model, base=base)
    return {"digest": stored.digest, "sizeBytes": stored.size_bytes}


def _repository(text: str) -> tuple[str, str]:
    repository, _, revision = text.partition("@")
    if not revision:
        raise UserMistakeError("BaseUnreadable", f"{text} names no revision", f"use {_HUB}")
    return repository, revision


if __name__ == "__main__":
    raise SystemExit(main())
