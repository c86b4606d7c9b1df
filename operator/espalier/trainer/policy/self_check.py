"""Decides whether a base may use the fast path, by family, settings and a comparison.

The comparison alone is not enough: a random short sequence hardly reaches a soft cap. Neither is
the list of families, which was made with one version of transformers on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.api.wire.problem import Problem
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import Row, pack
from espalier.trainer.policy.frozen_lm_head import Evaluated
from espalier.trainer.policy.sharding import Whole

# Their layers mix tokens only by attention, through the registered interface.
FAST_FAMILIES = frozenset({"llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text"})
# Settings with which a family's attention or logits are not what the fast path computes.
UNKNOWN_SETTINGS = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "attention_chunk_size",
)
# By the base's dtype: the largest difference of log-probs, and that of the whole gradient relative
# to its length. A wrong path is off by about one; half precision rounds differently on each.
TOLERANCE = {torch.float64: (1e-6, 1e-6), torch.float32: (1e-3, 1e-3)}
HALF_TOLERANCE = (0.25, 0.2)
REMEDY = (
    "training goes on, exact but slower; for the fast path use a base of "
    "Llama, Qwen2, Qwen3, Mistral, Gemma or Gemma 3"
)

Evaluate = Callable[[Row], Evaluated]


def unknown_family(config: Any) -> Problem | None:
    """Why a base of this configuration cannot use the fast path."""
    if config.model_type not in FAST_FAMILIES:
        return padded(
            "UnknownFamily", f"the fast path does not know the family {config.model_type}"
        )
    for setting in UNKNOWN_SETTINGS:
        if getattr(config, setting, None):
            return padded(
                "UnknownSetting", f"the fast path does not know {config.model_type} with {setting}"
            )
    return None


def compare(
    fast: Evaluate,
    slow: Evaluate,
    parameters: Mapping[str, nn.Parameter],
    *,
    vocabulary: int,
    dtype: torch.dtype,
    sharding: Whole,
) -> Problem | None:
    """Log-probs and gradients of random sequences with shared prefixes, both ways.

    ``dtype`` is the base's. Leaves no gradient behind. Ranks that share the weights agree.
    """
    (row,) = pack(_sequences(vocabulary), 1 << 10)
    ours, our_gradient = _measured(fast, row, parameters, sharding)
    plain, plain_gradient = _measured(slow, row, parameters, sharding)
    squares = torch.stack([(our_gradient - plain_gradient).norm(), plain_gradient.norm()]) ** 2
    # Every rank has the same log-probs, so their mean is the same too.
    largest = (ours - plain).abs().max().to(squares) / sharding.size
    sums = sharding.total(torch.cat([squares, largest[None]]))
    gradient_off, off = float((sums[0] / sums[1]).sqrt()), float(sums[2])
    tolerance, gradient_tolerance = TOLERANCE.get(dtype, HALF_TOLERANCE)
    # A NaN fails every tolerance.
    if off <= tolerance and gradient_off <= gradient_tolerance:
        return None
    return padded(
        "SelfCheckDiffers",
        f"log-probs of the fast path differ from plain ones by {off:.2g} (tolerated: "
        f"{tolerance:g}), gradients by {gradient_off:.2g} of their length ({gradient_tolerance:g})",
    )


def padded(reason: str, detail: str) -> Problem:
    """The warning of a trainer that runs on the padded path, and why."""
    return Problem(detail=detail, reason=reason, remedy=REMEDY)


def _measured(
    evaluate: Evaluate, row: Row, parameters: Mapping[str, nn.Parameter], sharding: Whole
) -> tuple[Tensor, Tensor]:
    """Log-probs, and the gradient of a loss that weighs every one of them differently."""
    logprobs = evaluate(row).logprobs
    weights = torch.linspace(-1.0, 1.0, len(logprobs)).to(logprobs)
    logprobs.backward(weights)  # type: ignore[no-untyped-call]
    gradients = []
    for parameter in parameters.values():
        if parameter.grad is not None:
            gradients.append(sharding.own(parameter.grad.detach()).flatten().clone())
        parameter.grad = None
    return logprobs.detach(), torch.cat(gradients)


def _sequences(vocabulary: int) -> list[Datum]:
    """Two prompts; the outputs of one diverge at once, later, and where another one ended."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, 64).tolist()
    one, other = tuple(tokens[:9]), tuple(tokens[9:14])
    outputs = [
        (one, tuple(tokens[14:21])),
        (one, tuple(tokens[14:17] + tokens[21:30])),
        (one, tuple(tokens[30:32])),
        (one + tuple(tokens[30:32]), tuple(tokens[32:40])),
        (other, tuple(tokens[40:43])),
        (other, tuple(tokens[43:60])),
    ]
    return [Datum(prompt, output, (), 0.0, 0.0, 0, None) for prompt, output in outputs]
