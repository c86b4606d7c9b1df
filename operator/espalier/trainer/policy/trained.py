"""The trained part of a causal LM: the interface of adapter and full training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from espalier.trainer.volume.shapes import Shapes
from espalier.trainer.volume.tensor_files import TensorFile


class Trained(ABC):
    """``causal_lm`` runs; ``parameters`` are trained, by their name in a checkpoint."""

    causal_lm: Any
    parameters: dict[str, nn.Parameter]

    @property
    @abstractmethod
    def initial(self) -> Mapping[str, Tensor]:
        """The parameters before the first step."""

    @abstractmethod
    def replaced_by(self, other: Mapping[str, Tensor] | None) -> AbstractContextManager[None]:
        """Computes with other weights inside, or with None as the base does; for an adapter alone.

        Take no gradients inside.
        """

    @abstractmethod
    def files(self, shapes: Shapes) -> list[TensorFile]:
        """The files of a checkpoint of parameters with these shapes, and of their moments."""

    @abstractmethod
    def write_configuration(self, directory: Path) -> None:
        """Writes what readers need beside the weights to load a checkpoint."""
