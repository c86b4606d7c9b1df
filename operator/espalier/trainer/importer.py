"""Copies a base model to the volume, once: ``python -m espalier.trainer.importer``.

With ``--adapter`` it takes over a LoRA adapter from outside instead, as a checkpoint of a base that
is on the volume. Prints and leaves in the termination log ``{"uri", "revision", "digest"}`` or a
Problem.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

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
    # Imported here so that importing from a directory needs no hub client.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    with store.staging("base") as staged:
        try:
            snapshot_download(
                repository, revision=revision, local_dir=staged, allow_patterns=list(PATTERNS)
            )
        except HfHubHTTPError as error:
            raise UserMistakeError(
                "BaseUnreadable",
                f"{repository}@{revision} cannot be read from the hub: {error}",
                "check source.base.huggingFace; gated models need an image or a claim",
            ) from error
        shutil.rmtree(staged / ".cache", ignore_errors=True)
        model_files(staged)
        return store.commit("base", staged, {})[0]


def import_adapter(
    store: CheckpointStore, source: Path, adapter: Adapter, *, model: str, base: str
) -> Stored:
    """The adapter in ``source`` as a model's step 0; raises UserMistakeError if it does not fit."""
    # Imported here so that importing a base needs no torch.
    from espalier.trainer import adapters, checkpoints  # noqa: PLC0415
    from espalier.trainer.model import adapter_shapes  # noqa: PLC0415

    try:
        found = store.verify("base", base)
    except DigestError as error:
        raise UserMistakeError("BaseUnreadable", str(error), "import the base first") from error
    parameters = adapters.read(source, adapter, adapter_shapes(found.path, adapter))
    return checkpoints.write_imported(store, parameters, adapter, model=model, base=base)


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
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--directory", type=Path)
    group.add_argument("--hugging-face", metavar="OWNER/NAME@REVISION")
    group.add_argument("--adapter", type=Path, help="a LoRA adapter of PEFT; needs --base, --model")
    parser.add_argument("--base", default="", help="digest of the adapter's base")
    parser.add_argument("--model", default="", help="whose step 0 the adapter becomes")
    arguments = parser.parse_args()
    if arguments.adapter is not None and not (arguments.base and arguments.model):
        parser.error("--adapter needs --base and --model")
    store = CheckpointStore(Path(os.environ.get("ESPALIER_VOLUME", "/weights")), "importer")
    repository, _, revision = (arguments.hugging_face or "").partition("@")
    try:
        if arguments.adapter is not None:
            stored = import_adapter(
                store,
                arguments.adapter,
                Adapter.model_validate_json(os.environ.get("ESPALIER_ADAPTER", "{}")),
                model=arguments.model,
                base=arguments.base,
            )
        elif arguments.directory is not None:
            stored = import_directory(store, arguments.directory)
        elif not revision:
            raise UserMistakeError(
                "BaseUnreadable", "--hugging-face names no revision", "use owner/name@<commit>"
            )
        else:
            stored = import_hugging_face(store, repository, revision)
    except (UserMistakeError, CommandError) as error:
        leave_message(error.problem.model_dump())
        return EXIT_USER_MISTAKE
    leave_message({"uri": f"file://{stored.path}", "revision": revision, "digest": stored.digest})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
