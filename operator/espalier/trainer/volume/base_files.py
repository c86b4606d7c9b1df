"""Finds the files of a base in a directory and checks that all are there; unpickles nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.api.model.adapter import Adapter
from espalier.api.source import TurnEnd
from espalier.core.volume import MANIFEST
from espalier.trainer.problems import UserMistakeError
from espalier.untrusted import read_json

TEMPLATE = "chat_template.jinja"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# The files to train and serve a base; weights in other formats are left behind.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_ADAPTER = "adapter_config.json"
_POINTER = b"version https://git-lfs.github.com/spec/"
_NAMED = 5


@dataclass(frozen=True)
class Wanted:
    """What the model asks of its base; an empty ``chat_template`` leaves the base's own."""

    adapter: Adapter = field(default_factory=Adapter)
    chat_template: str = ""


@dataclass(frozen=True)
class Facts:
    """Facts about a base.

    ``context_tokens`` is None if the base sets no limit. ``unstopped`` is the token that the chat
    template closes a turn with, if it does not end a completion.
    """

    context_tokens: int | None
    chat_template: bool
    unstopped: TurnEnd | None = None


def model_files(source: Path) -> list[Path]:
    """The files of a base in ``source``; raises UserMistakeError if it is not a base."""
    if not source.is_dir():
        raise unreadable(f"{source} is no directory", "check spec.source.base")
    root = source.resolve()
    files = sorted(
        path
        for path in source.rglob("*")
        if path.is_file()
        and path.name != MANIFEST
        and any(path.match(pattern) for pattern in PATTERNS)
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )
    for path in files:
        if not path.resolve().is_relative_to(root):
            raise unreadable(
                f"{path.relative_to(source)} is a link that leads out of the model's directory",
                "copy the file there instead",
            )
        _refuse_pointer(path, source)
    shards = _shards(source, files)
    config(source)
    weights = {source / name for name in shards}
    return [path for path in files if path.suffix != ".safetensors" or path in weights]


def config(source: Path) -> dict[str, Any]:
    """The base's config.json; raises UserMistakeError if it is not a JSON object."""
    return _json(source / CONFIG)


def shard_of(source: Path) -> dict[str, str]:
    """The file of each tensor, from the index; empty if one file holds all."""
    if not (source / INDEX).is_file():
        return {}
    mapping = _json(source / INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
        raise unreadable(f"{INDEX} has no weight_map of tensors to files", "download it again")
    return mapping


def unreadable(detail: str, remedy: str) -> UserMistakeError:
    """The error BaseUnreadable with its remedy."""
    return UserMistakeError("BaseUnreadable", detail, remedy)


def some(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more


def check_space(directory: Path, wanted: int, field: str) -> None:
    """Raises UserMistakeError with both figures if fewer than ``wanted`` bytes are free."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if wanted > free:
        raise UserMistakeError(
            "VolumeFull",
            f"{field}: its files take {gib(wanted)} more, and the claim of spec.storage has "
            f"{gib(free)} left",
            "enlarge the claim, or delete checkpoints",
        )


def gib(count: int) -> str:
    """A number of bytes for people to read."""
    return f"{count / 2**30:.1f} GiB"


def size_of(path: Path | None) -> int:
    """A file's bytes; 0 if it is absent or was renamed meanwhile."""
    try:
        return path.stat().st_size if path is not None else 0
    except FileNotFoundError:
        return 0


def _shards(source: Path, files: list[Path]) -> list[str]:
    """The files of the weights by name; raises if one is missing."""
    names = {path.relative_to(source).as_posix() for path in files}
    tensors = sorted(name for name in names if name.endswith(".safetensors"))
    if CONFIG not in names:
        if (source / _ADAPTER).is_file():
            raise unreadable(
                f"the files are a LoRA adapter ({_ADAPTER}, no {CONFIG}), not a base",
                "name its base in spec.source.base and the adapter in spec.source.adapter",
            )
        raise unreadable(
            f"{source} holds no {CONFIG}: there is {some(names) or 'nothing'}",
            "name the directory of one model; an image needs it under /models",
        )
    if INDEX in names:
        wanted = sorted(set(shard_of(source).values()))
        if lost := [name for name in wanted if name not in names]:
            raise unreadable(
                f"{INDEX} names {some(lost)}, which {'is' if len(lost) == 1 else 'are'} not there",
                "download the model again: it is not complete",
            )
        return wanted
    if WEIGHTS in names:
        return [WEIGHTS]
    if tensors:
        raise unreadable(
            f"weights are in {some(tensors)}, and neither {WEIGHTS} nor {INDEX} is there",
            "save the model with transformers' save_pretrained, or give all of its files",
        )
    if pickles := sorted(p.name for pattern in PICKLES for p in source.glob(pattern)):
        raise UserMistakeError(
            "PickleRefused",
            f"the only weights are {some(pickles)}: a pickle runs code when it is read",
            "save the model again where you trust it, with safe_serialization=True",
        )
    raise unreadable(
        f"{source} holds {CONFIG} and no *.safetensors", "weights must be in safetensors"
    )


def _refuse_pointer(path: Path, source: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise unreadable(
                f"{path.relative_to(source)} is a Git LFS pointer, not the file itself",
                "run git lfs pull where the model was cloned, and copy it again",
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path.read_bytes())
    except ValueError as error:
        raise unreadable(f"{path.name} is not JSON: {error}", "mend the model's files") from error
    if not isinstance(content, dict):
        raise unreadable(f"{path.name} is no JSON object", "mend the model's files")
    return content
