"""What a comparison holds equal on both sides."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True)
class Setting:
    """A run: its model, batch and optimizer.

    Attributes:
        model: directory of the base model.
        seed: of the order of the tasks, of LoRA's first weights, and of TRL's samples.
        groups, size: tasks of a step, and completions of each.
        rank, alpha: of LoRA on all linear layers, without dropout.
        max_tokens: of a completion.
        steps: optimizer steps.
        loss: Espalier's.
    """

    model: str
    seed: int = 1
    groups: int = 4
    size: int = 8
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 3e-4
    max_tokens: int = 16
    steps: int = 20
    loss: str = "importance_sampling"

    @classmethod
    def read(cls, text: str) -> Self:
        """From ``written``."""
        return cls(**json.loads(text))

    def written(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))
