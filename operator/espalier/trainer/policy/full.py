"""Trains all weights of a base; a checkpoint is a complete Hugging Face model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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
from espalier.unchanged import end_if_changed, note

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
        # The base is read again long after it was hashed.
        self._noted = note(base)
        _check(causal_lm, Tensors(base.glob("*.safetensors")).shapes)

    @override
    @contextmanager
    def initial(self) -> Iterator[Mapping[str, Tensor]]:
        yield Tensors(self._base.glob("*.safetensors"))
        end_if_changed(self._noted)

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
        config = json.loads((self._base / CONFIG_FILE).read_text())
        # Readers convert weights to this dtype, whatever the files hold.
        config.pop("torch_dtype", None)
        config["dtype"] = str(next(iter(self.parameters.values())).dtype).removeprefix("torch.")
        (directory / CONFIG_FILE).write_text(json.dumps(config, sort_keys=True, indent=1))
        for source in sorted(path for path in self._base.rglob("*") if path.is_file()):
            name = source.relative_to(self._base)
            if not any(name.match(pattern) for pattern in _OF_THE_WEIGHTS):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, directory / name)
        end_if_changed(self._noted)


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
