"""The commands of a model, as the gateway sends them to its trainer.

``POST /train/tinker/{kind}`` with the header ``Idempotency-Key: <model_id>/<seq_id>``, and
``GET /train/tinker/results/{model_id}/{seq_id}?wait=<seconds>``.
"""

from __future__ import annotations

from typing import Literal

CommandKind = Literal["forward-backward", "optim-step", "save-weights", "load-weights"]
COMMANDS = "/train/tinker"
RESULTS = f"{COMMANDS}/results"
