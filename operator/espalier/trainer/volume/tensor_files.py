"""The tensors of a checkpoint on disk, written and read one at a time.

A LoRA checkpoint has PEFT's adapter file and one of Adam's moments. A full one has the files of a
Hugging Face model and, in a folder that no reader of such a model looks into, moments by the same
shards. Formats: https://huggingface.co/docs/safetensors, and ``model.safetensors.index.json`` as
transformers writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from espalier.trainer.volume.peft_adapter import WEIGHTS as ADAPTER_FILE
from espalier.trainer.volume.shapes import Shapes

OPTIMIZER_FILE = "optimizer.safetensors"
OPTIMIZER_FOLDER = "optimizer"
INDEX_FILE = "model.safetensors.index.json"
MODEL_FILES = "model*.safetensors"
FIRST, SECOND = "exp_avg", "exp_avg_sq"
# A shard of weights. Its moments take twice as much, and writing keeps one file in memory.
SHARD_BYTES = 1 << 30
_FLOAT32_BYTES = 4


class Tensors(Mapping[str, Tensor]):
    """The tensors of some safetensors files by name, read from disk when asked for."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[str, Any] = {}
        for path in sorted(paths):
            opened: Any = safe_open(path, "pt")
            self._files.update(dict.fromkeys(opened.keys(), opened))

    @override
    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self._files[name].get_tensor(name)
        return value

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    @override
    def __len__(self) -> int:
        return len(self._files)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A tensor's entries ``start`` to ``stop`` along its first dimension."""
        part: Tensor = self._files[name].get_slice(name)[start:stop]
        return part

    @property
    def shapes(self) -> Shapes:
        """Every tensor's shape; reads headers only."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}


class Parts(Mapping[str, Tensor]):
    """Some rows of every tensor of ``files``: ``rows`` selects them from a number of rows."""

    def __init__(self, tensors: Tensors, rows: Callable[[int], slice]) -> None:
        self._tensors = tensors
        self._rows = rows
        self._shapes = tensors.shapes

    @override
    def __getitem__(self, name: str) -> Tensor:
        rows = self._rows(self._shapes[name][0])
        return self._tensors.rows(name, rows.start, rows.stop)

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    @override
    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file: its path in the checkpoint, and its tensors in order."""

    path: str
    tensors: tuple[str, ...]
    metadata: dict[str, str] = field(default_factory=dict)


def moment_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of the first and second moments of parameters."""
    return tuple(f"{name}.{moment}" for name in names for moment in (FIRST, SECOND))


def lora_files(shapes: Shapes) -> list[TensorFile]:
    """The files of an adapter and of its moments."""
    return [
        TensorFile(ADAPTER_FILE, tuple(shapes), {"format": "pt"}),
        TensorFile(OPTIMIZER_FILE, moment_names(shapes)),
    ]


def full_files(shapes: Shapes, shard_bytes: int = SHARD_BYTES) -> list[TensorFile]:
    """The files of a whole model and of its moments, in shards of at most a size."""
    shards: list[list[str]] = [[]]
    size_so_far = 0
    for name, shape in shapes.items():
        size = _bytes(shape)
        if shards[-1] and size_so_far + size > shard_bytes:
            shards.append([])
            size_so_far = 0
        shards[-1].append(name)
        size_so_far += size
    result = []
    for number, names in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        result += [
            TensorFile(f"model{part}.safetensors", tuple(names), {"format": "pt"}),
            TensorFile(f"{OPTIMIZER_FOLDER}/moments{part}.safetensors", moment_names(names)),
        ]
    return result


def write(directory: Path, files: Iterable[TensorFile], tensors: Iterator[Tensor]) -> None:
    """Writes the files; takes ``tensors`` in file order, one file in memory at a time."""
    for file in files:
        path = directory / file.path
        path.parent.mkdir(exist_ok=True)
        content = {name: next(tensors).cpu().contiguous() for name in file.tensors}
        save_file(content, path, file.metadata or None)


def write_index(directory: Path, files: Iterable[TensorFile], shapes: Shapes) -> None:
    """Writes which shard holds which tensor; nothing if there is one file."""
    models = [file for file in files if "/" not in file.path]
    if len(models) == 1:
        return
    size = sum(_bytes(shape) for shape in shapes.values())
    where = {name: file.path for file in models for name in file.tensors}
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True))


def weights_of(checkpoint: Path) -> Tensors:
    """The trained weights of a checkpoint's directory."""
    adapter = checkpoint / ADAPTER_FILE
    return Tensors([adapter] if adapter.exists() else checkpoint.glob(MODEL_FILES))


def moments_of(checkpoint: Path) -> Tensors:
    """Adam's moments of a checkpoint's directory."""
    one = checkpoint / OPTIMIZER_FILE
    several = (checkpoint / OPTIMIZER_FOLDER).glob("*.safetensors")
    return Tensors([one] if one.exists() else several)


def _bytes(shape: tuple[int, ...]) -> int:
    size = _FLOAT32_BYTES
    for extent in shape:
        size *= extent
    return size
