"""Espalier: a GitOps training operator for reinforcement learning of language models.

What a script uses (``espalier.TrainingClient``, ``espalier.Fit`` and the rest of the client, the
loop and the trackers) is found here too, loaded when it is first named: the operator and the
trainer share this package and have no use for it.
"""

from __future__ import annotations

import importlib
from typing import Any

# For scripts; ``espalier.X`` is looked up in them in this order.
_ROOMS = ("espalier.client", "espalier.loop", "espalier.tracking")


def __getattr__(name: str) -> Any:
    for room in _ROOMS:
        module = importlib.import_module(room)
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module 'espalier' has no attribute {name!r}")
