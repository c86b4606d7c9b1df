"""Trains all weights of a base; a checkpoint is a complete Hugging Face model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from espalier.trainer.policy.trained import Trained
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.shapes import Shapes, shapes_of, some
from espalier.trainer.volume.tensor_files import TensorFile, Tensors

CONFIG_FILE = "config.json"
# The files of a base that hold or describe its weights.
_OF_THE_WEIGHTS = (CONFIG_FILE, "*.safetensors*", "manifest.json")


class Full(Trained):
    """Parameters by their name in the base's files; a tied head is its embedding, once.

    ``base`` is the directory that the model was loaded from.
    """

    def __init__(self, causal_lm: nn.Module, base: Path) -> None:
        self.causal_lm: Any = causal_lm
        self.parameters = dict(causal_lm.named_parameters())
        self._base = base
        _check(causal_lm, Tensors(base.glob("*.safetensors")).shapes)
        # Read with the weights, and kept: days later the base may be another one.
        self._config = json.loads((base / CONFIG_FILE).read_text())
        self._others = _others(base)

    @property
    @override
    def initial(self) -> Mapping[str, Tensor]:
        return Tensors(self._base.glob("*.safetensors"))

    @override
    def replaced_by(self, other: Mapping[str, Tensor] | None) -> AbstractContextManager[None]:
        raise ValueError("the base is what is trained, and no second copy of it is loaded")

    @override
    def files(self, shapes: Shapes) -> list[TensorFile]:
        return tensor_files.full_files(shapes)

    @override
    def write_configuration(self, directory: Path) -> None:
        """Writes configuration, tokenizer and shard index, as any Hugging Face model has."""
        shapes = shapes_of(self.parameters)
        tensor_files.write_index(directory, self.files(shapes), shapes)
        # Readers convert weights to this dtype, whatever the files hold.
        dtype = str(next(iter(self.parameters.values())).dtype).removeprefix("torch.")
        config = {**self._config, "dtype": dtype}
        config.pop("torch_dtype", None)
        (directory / CONFIG_FILE).write_text(json.dumps(config, sort_keys=True, indent=1))
        for name, content in self._others.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)


def _others(base: Path) -> dict[Path, bytes]:
    """The tokenizer, and whatever else a base has beside its weights and their description."""
    found = {path.relative_to(base): path for path in sorted(base.rglob("*")) if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if not any(name.match(pattern) for pattern in _OF_THE_WEIGHTS)
    }


def _check(causal_lm: nn.Module, stored: Shapes) -> None:
    """Checks that trained weights have the names and shapes that other readers expect."""
    wrong = sorted(
        name
        for name, parameter in causal_lm.named_parameters()
        if stored.get(name) != tuple(parameter.shape)
    )
    # Tied weights are in the state under every name, among the parameters under one.
    state = causal_lm.state_dict(keep_vars=True)
    wrong += sorted(name for name, v in state.items() if not isinstance(v, nn.Parameter))
    narrow = {v.dtype for v in causal_lm.parameters() if v.dtype.itemsize < torch.float32.itemsize}
    if wrong:
        raise UserMistakeError(
            "UnsupportedBase",
            f"spec.adapter.type is Full, and the base's files do not hold "
            f"{some(wrong)} under the name and shape of the loaded model",
            "use adapter type LoRA, or a base saved by the transformers of this image",
        )
    if narrow:
        raise UserMistakeError(
            "InvalidSettings",
            f"spec.adapter.type is Full, and spec.trainer.dtype {narrow.pop()}: steps would round",
            "set spec.trainer.dtype: float32",
        )
