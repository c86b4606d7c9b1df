"""Espalier: a GitOps training operator for reinforcement learning of language models.

``espalier.TrainingClient`` and the rest of ``espalier.client`` are found here too, loaded when they
are first named: the operator and the trainer share this package and have no use for them.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    client = importlib.import_module("espalier.client")
    if name in client.__all__:
        return getattr(client, name)
    raise AttributeError(f"module 'espalier' has no attribute {name!r}")
