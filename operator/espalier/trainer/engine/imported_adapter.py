"""An adapter from outside as the checkpoint of step 0 of its model.

Who reads the adapter writes its tensors; who commits them reads none, and writes what is said of
them itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from espalier.api.model.adapter import Adapter
from espalier.core.names import MAIN
from espalier.trainer.compute.adamw import fresh_moments
from espalier.trainer.engine.checkpoint_files import STATE_FILE, StepState, metadata
from espalier.trainer.volume import staged_files, tensor_files
from espalier.trainer.volume.checkpoint_store import CheckpointStore, Stored
from espalier.trainer.volume.command_log import Key
from espalier.trainer.volume.peft_adapter import CONFIG, WEIGHTS
from espalier.trainer.volume.shapes import State, shapes_of

_TENSORS = (WEIGHTS, tensor_files.OPTIMIZER_FILE)


def write_tensors(staged: Path, parameters: State) -> list[str]:
    """Writes an adapter's weights and Adam before its first step; returns its target modules."""
    tensors = parameters | fresh_moments(parameters).tensors()
    layout = tensor_files.lora_files(shapes_of(parameters))
    tensor_files.write(staged, layout, (tensors[name] for file in layout for name in file.tensors))
    return sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in parameters})


def commit(
    store: CheckpointStore,
    written: Path,
    target_modules: Sequence[str],
    adapter: Adapter,
    *,
    model: str,
    base: str,
) -> Stored:
    """Commits copies of what ``write_tensors`` wrote as the model's step 0.

    The same adapter again gives the same digest.

    Raises:
        CommandError: VolumeFull (507).
        StrangeFileError: it is not what is written there.
    """
    state = _first_state(model)
    with store.staging("checkpoint") as staged:
        staged_files.copied(written, _TENSORS, staged)
        config = _configuration(adapter, target_modules)
        (staged / CONFIG).write_text(json.dumps(config, sort_keys=True, indent=1))
        (staged / STATE_FILE).write_text(state.model_dump_json(indent=1))
        described = metadata(state, Key("import", 0), base=base, adapter=adapter)
        return store.commit("checkpoint", staged, described)[0]


def _first_state(model: str) -> StepState:
    return StepState(
        model=model,
        run="",
        step=0,
        run_step=0,
        branch=MAIN,
        term=0,
        parent="",
        parent_name="",
        learning_rate=0.0,
        group_size=1,
        loss="",
        metrics={},
        cursor={},
        optimizer_steps=0,
    )


def _configuration(adapter: Adapter, target_modules: Sequence[str]) -> dict[str, object]:
    """PEFT's, with an explicit list of modules, as vLLM wants it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "base_model_name_or_path": "base",
        "inference_mode": True,
        "target_modules": [*target_modules],
    }
