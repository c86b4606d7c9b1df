"""The commands of a model, as the gateway sends them to its trainer.

``POST /train/tinker/{kind}`` with the header ``Idempotency-Key: <model_id>/<seq_id>``, and
``GET /train/tinker/results/{model_id}/{seq_id}?wait=<seconds>``;
``GET /train/tinker/files/{digest}/{name}`` sends a file of an adapter.
"""

from __future__ import annotations

from typing import Literal

CommandKind = Literal["forward-backward", "optim-step", "save-weights", "load-weights"]
COMMANDS = "/train/tinker"
RESULTS = f"{COMMANDS}/results"
FILES = f"{COMMANDS}/files"
# Of an adapter as PEFT and vLLM load it.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
