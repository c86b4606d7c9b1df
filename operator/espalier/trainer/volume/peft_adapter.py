"""Reads LoRA adapters in PEFT's format that were trained elsewhere; never unpickles.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from espalier.api.model.adapter import Adapter
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.volume.base_files import PICKLES
from espalier.trainer.volume.shapes import Shapes, State, difference, some
from espalier.untrusted import read_json

# PEFT's two files.
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Options under which the two matrices alone do not define the adapter.
_REFUSED = (
    "use_dora",
    "use_rslora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)
# Other initialisations (PiSSA, OLoRA, LoftQ) change the base as well.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def read(source: Path, adapter: Adapter, shapes: Shapes) -> State:
    """The float32 weights of the adapter in ``source``.

    Args:
        source: a directory of PEFT.
        adapter: what the model's ``spec.adapter`` asks for.
        shapes: the shape of every weight of this adapter on its base, by PEFT's name.

    Raises:
        UserMistakeError: it is not such an adapter; the detail names the difference.
    """
    _refuse_pickles(source)
    _refuse_links(source)
    _check_config(_config(source), adapter)
    try:
        wrong = difference(_shapes(source / WEIGHTS), shapes)
        # Only what is of the wanted size is read into memory.
        state = {} if wrong else load_file(source / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _unreadable(f"{WEIGHTS} cannot be read: {error}") from error
    if wrong:
        raise UserMistakeError(
            "AdapterMismatch",
            f"the adapter does not fit the base and spec.adapter: {wrong}",
            "set spec.adapter.targetModules to the adapter's, and name the base it was trained on",
        )
    for name, value in state.items():
        _check_values(name, value)
    return {name: value.float() for name, value in state.items()}


def _refuse_pickles(source: Path) -> None:
    pickles = sorted(p.name for pattern in PICKLES for p in source.rglob(pattern))
    if pickles:
        raise UserMistakeError(
            "PickleRefused",
            f"the adapter holds {some(pickles)}: a pickle runs code when it is read",
            "save the adapter again where you trust it, with PEFT's save_pretrained("
            "safe_serialization=True), and remove the other files",
        )


def _refuse_links(source: Path) -> None:
    """A link could make the weights of another model, on the same claim, those of this one."""
    root = source.resolve()
    for name in (CONFIG, WEIGHTS):
        if not (source / name).resolve().is_relative_to(root):
            raise _unreadable(f"{name} is a link that leads out of the adapter's directory")


def _shapes(weights: Path) -> Shapes:
    """The shape of every tensor, by the header of the file."""
    with safe_open(weights, "pt") as opened:
        names = opened.keys()
        return {name: tuple(opened.get_slice(name).get_shape()) for name in names}


def _config(source: Path) -> dict[str, Any]:
    try:
        content = read_json((source / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(f"{CONFIG} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _unreadable(f"{CONFIG} is no JSON object")
    return content


def _check_config(config: dict[str, Any], adapter: Adapter) -> None:
    if config.get("peft_type") != "LORA":
        raise _unsupported(f"peft_type is {config.get('peft_type')!r}, must be 'LORA'")
    if config.get("bias", "none") != "none":
        raise _unsupported(f"bias is {config['bias']!r}, must be 'none'")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise _unsupported(
            f"init_lora_weights is {config['init_lora_weights']!r}: it changes the base"
        )
    if used := [name for name in _REFUSED if config.get(name)]:
        raise _unsupported(f"it uses {', '.join(used)}")
    pairs = (
        ("spec.adapter.rank", adapter.rank, config.get("r")),
        ("spec.adapter.alpha", adapter.alpha, config.get("lora_alpha")),
    )
    wrong = [(field, mine, theirs) for field, mine, theirs in pairs if mine != theirs]
    if wrong:
        raise UserMistakeError(
            "AdapterMismatch",
            "; ".join(f"{f} is {mine}, the adapter's is {theirs}" for f, mine, theirs in wrong),
            "create the model with " + ", ".join(f"{f}: {theirs}" for f, _, theirs in wrong),
        )


def _check_values(name: str, value: Tensor) -> None:
    if value.dtype not in DTYPES:
        raise _unsupported(f"{name} is of {value.dtype}, must be float32, float16 or bfloat16")
    if not bool(value.isfinite().all()):
        raise _unsupported(f"{name} is not finite")


def _unreadable(detail: str) -> UserMistakeError:
    return UserMistakeError(
        "AdapterUnreadable", detail, f"give a directory of PEFT with {CONFIG} and {WEIGHTS}"
    )


def _unsupported(detail: str) -> UserMistakeError:
    return UserMistakeError(
        "UnsupportedAdapter",
        f"the adapter cannot be taken over: {detail}",
        "give a plain LoRA, or merge it into its base and fork from that",
    )
