"""Log-probs of given tokens under a frozen output head, without logits of the whole batch.

The head is frozen, so a target's log-prob is a scalar function of its hidden state h. With
z = h W' / temperature and p = softmax(z), its derivative is (onehot(y) - p) W / temperature.
That row is computed in the forward pass, chunk by chunk, while the logits are at hand; backward is
one multiplication. Any loss of log-probs works with it, and the head is never run twice. The
distribution's entropy falls off on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Bounds the logits of a chunk: rows times vocabulary, by device.
CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}


@dataclass(frozen=True)
class Evaluated:
    """Of N targets under the temperature-scaled distributions that they were drawn from.

    ``logprobs`` [N] is differentiable; ``entropy`` [N], in nats, is not. Both are float32 (float64
    for a float64 base).
    """

    logprobs: Tensor
    entropy: Tensor


class _CompletionLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, tau: float
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        needs_rows = ctx.needs_input_grad[0]
        rows = torch.empty_like(hidden) if needs_rows else None
        size = max(1, CHUNK_ELEMENTS[weight.device.type] // weight.shape[0])
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            chosen = targets[part].unsqueeze(1)
            logits = _logits(hidden[part], weight, wide)
            if bias is not None:
                logits += bias.to(wide)
            logits /= tau
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            logits -= normaliser
            logprobs[part] = logits.gather(1, chosen).squeeze(1)
            chances = logits.exp()
            # A product of vectors needs no third tensor of this size.
            entropy[part] = -(chances.unsqueeze(1) @ logits.unsqueeze(2)).flatten()
            if rows is not None:
                # onehot - p is formed in the wide type: for confident tokens a difference of
                # narrow products would keep no correct digit.
                residual = chances.neg_()
                residual.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=wide))
                rows[part] = (residual / tau).to(weight.dtype) @ weight
        if rows is not None:
            ctx.save_for_backward(rows)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (rows,) = ctx.saved_tensors
        return (upstream[0].unsqueeze(1) * rows).to(rows.dtype), None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, wide: torch.dtype) -> Tensor:
    if weight.dtype == wide:
        return hidden @ weight.T
    if hidden.is_cuda:
        return torch.mm(hidden, weight.T, out_dtype=wide)
    return hidden.to(wide) @ weight.to(wide).T


def evaluate(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> Evaluated:
    """``targets`` [N] given ``hidden`` [N, H] and the head's ``weight`` [V, H], ``bias`` [V]."""
    logprobs, entropy = _CompletionLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, temperature
    )
    return Evaluated(logprobs, entropy)
