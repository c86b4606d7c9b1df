"""LoRA operations for vLLM on CPU: one matrix product per distinct adapter of a batch.

vLLM 0.32 gathers one copy of the adapter's matrices per token (slow), and its gather reads index
-1, "no adapter", as the last slot (wrong: a request for the base is answered with the weights of
another). Grouping the rows by adapter mends both.

Shapes: ``inputs`` (tokens, in), weights (slots, 1, out, in) or (slots, out, in), ``output_tensor``
(tokens, at least out), indices (tokens,) with -1 for no adapter. The signatures are vLLM's.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType

import torch

# Of the modules and functions that are replaced or relied on, in the vLLM that pyproject pins.
KNOWN_SOURCES = {
    "GPUModelRunner._get_prompt_logprobs_dict": (
        "889fdb068dfc37ddf4827e8f3af2d99ff790fbd3c77ff4a05eec1e3d0f1f560f"
    ),
    "LoRAModelRunnerMixin._set_active_loras": (
        "9fc864a554db57469d4280a21af61de7ed7bbac5ff44981f17133671a2e3c85d"
    ),
    "vllm.lora.ops.torch_ops.lora_ops": (
        "33bc2aca729ebc379e1725c3c1ca870e70aa3b278f0ad3d2a621e6ec8ee99c20"
    ),
    "vllm.lora.punica_wrapper.punica_cpu": (
        "d2ca28b31743f59a4a5a7c45449cf0f71d3019b842d551dee6cb7e7af53b02ee"
    ),
}


class UnknownSourceError(Exception):
    """vLLM's code is not the code that this module was written to replace."""


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """``output[t, :out] = scaling * W[index[t]] @ inputs[t]``, zero where the index is -1."""
    width = lora_b_weights.shape[-2]
    target = output_tensor[:, :width]
    target.zero_()
    for rows, product in _products(inputs, lora_b_weights, lora_indices_tensor, target):
        target[rows] = product * scaling


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """``output[t, :out] += W[index[t]] @ inputs[t]``; assigned if not ``add_inputs``."""
    # The adapter and the model may pad the output differently.
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    bgmv_expand_slice(
        inputs, lora_b_weights, output_tensor, lora_indices_tensor, 0, width, add_inputs
    )


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """As ``bgmv_expand``, into columns ``slice_offset`` to ``slice_offset + slice_size``."""
    target = output_tensor[:, slice_offset : slice_offset + slice_size]
    if not add_inputs:
        target.zero_()
    for rows, product in _products(inputs, lora_b_weights, lora_indices_tensor, target):
        target[rows] += product[:, :slice_size]


def sgmv_shrink(
    inputs: torch.Tensor,
    lora_a_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    scaling: float,
) -> None:
    """``bgmv_shrink`` with one index per run of ``seq_len_tensor`` tokens."""
    indices = torch.repeat_interleave(lora_indices_tensor, seq_len_tensor)
    bgmv_shrink(inputs, lora_a_weights, output_tensor, indices, scaling)


def sgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    add_inputs: bool = False,
) -> None:
    """``bgmv_expand`` with one index per run of ``seq_len_tensor`` tokens."""
    indices = torch.repeat_interleave(lora_indices_tensor, seq_len_tensor)
    bgmv_expand(inputs, lora_b_weights, output_tensor, indices, add_inputs)


def sgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """``bgmv_expand_slice`` with one index per run of ``seq_len_tensor`` tokens."""
    indices = torch.repeat_interleave(lora_indices_tensor, seq_len_tensor)
    bgmv_expand_slice(
        inputs, lora_b_weights, output_tensor, indices, slice_offset, slice_size, add_inputs
    )


OPERATIONS: tuple[Callable[..., None], ...] = (
    bgmv_expand,
    bgmv_expand_slice,
    bgmv_shrink,
    sgmv_expand,
    sgmv_expand_slice,
    sgmv_shrink,
)


def _products(
    inputs: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, target: torch.Tensor
) -> Iterator[tuple[slice | torch.Tensor, torch.Tensor]]:
    """Per distinct adapter: its rows, and ``inputs[rows] @ W.T`` in the target's dtype."""
    if not inputs.shape[0] == indices.shape[0] == target.shape[0]:
        raise ValueError(
            f"{inputs.shape[0]} inputs, {indices.shape[0]} adapter indices and "
            f"{target.shape[0]} outputs: the counts of rows must be equal"
        )
    inputs = inputs.to(target.dtype)
    slots = set(indices.tolist())
    for slot in sorted(slots - {-1}):
        weight = weights[slot].reshape(weights.shape[-2:]).to(target.dtype)
        # One adapter for the whole batch is the common case and needs no copy of the rows.
        rows = slice(None) if len(slots) == 1 else (indices == slot).nonzero().squeeze(1)
        yield rows, inputs[rows] @ weight.T


Source = ModuleType | FunctionType


def source_digest(source: Source) -> str:
    """SHA-256 of the text of a module or function."""
    return hashlib.sha256(inspect.getsource(source).encode()).hexdigest()


def check_source(source: Source) -> None:
    """Raise UnknownSourceError unless it is the text that we know how to replace."""
    name = source.__name__ if isinstance(source, ModuleType) else source.__qualname__
    found, known = source_digest(source), KNOWN_SOURCES[name]
    if found != known:
        raise UnknownSourceError(
            f"{name} has changed (sha256 {found}, known {known}): read what vLLM does now, run "
            "tests/sampler, then drop or renew lora_ops and prompt_logprobs of espalier.sampler.cpu"
        )


def install() -> None:
    """Replace vLLM's CPU LoRA operations in this process; raises UnknownSourceError. Idempotent."""
    from vllm.lora.ops import torch_ops  # noqa: PLC0415
    from vllm.lora.ops.torch_ops import lora_ops  # noqa: PLC0415
    from vllm.lora.punica_wrapper import punica_cpu  # noqa: PLC0415

    for module in (lora_ops, punica_cpu):
        check_source(module)
    for module in (lora_ops, torch_ops, punica_cpu):
        for operation in OPERATIONS:
            if not hasattr(module, operation.__name__):
                raise UnknownSourceError(f"{module.__name__} has no {operation.__name__}")
            setattr(module, operation.__name__, operation)
