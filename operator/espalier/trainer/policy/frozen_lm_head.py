"""Log-probs of given tokens under a frozen output head, without logits of the whole batch.

The head is frozen, so a target's log-prob is a scalar function of its hidden state h. With
z = h W' / temperature and p = softmax(z), its derivative is (onehot(y) - p) W / temperature.
That row is computed in the forward pass, chunk by chunk, while the logits are at hand; backward is
one multiplication. Any loss of log-probs works with it, and the head is never run twice. The
distribution's entropy H is a by-product; where a loss needs its derivative, -p (log p + H) W /
temperature, that row is made and kept as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Bounds the logits of a chunk: rows times vocabulary, by device.
CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}


@dataclass(frozen=True)
class Evaluated:
    """N targets under the temperature-scaled distributions that they were drawn from.

    ``logprobs`` [N] is differentiable; ``entropy`` [N], in nats, only if that was asked for. Both
    are float32 (float64 for a float64 base).
    """

    logprobs: Tensor
    entropy: Tensor


class _CompletionLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        tau: float,
        by_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        rows = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        entropy_rows = torch.empty_like(hidden) if rows is not None and by_entropy else None
        for part, logits in chunks(hidden, weight, bias, tau):
            chosen = targets[part].unsqueeze(1)
            logits.sub_(logits.amax(dim=1, keepdim=True))
            target = logits.gather(1, chosen)
            if rows is None or weight.dtype != wide or entropy_rows is not None:
                chances, total = _softmax(logits, torch.empty_like(logits))
                # A product of vectors needs no third tensor of this size.
                mean = (chances.unsqueeze(1) @ logits.unsqueeze(2)).flatten(1)
                entropy[part] = (total.log() - mean).squeeze(1)
                if entropy_rows is not None:
                    # log p + H is the logit minus the mean one; the logits are needed no more.
                    spread = logits.sub_(mean).mul_(chances).to(weight.dtype)
                    entropy_rows[part] = (spread @ weight).div_(-tau)
            else:
                chances, total = _softmax(logits, logits)
            logprobs[part] = (target - total.log()).squeeze(1)
            if rows is None:
                continue
            # onehot - p is formed in the wide type: for confident tokens a difference of narrow
            # products would keep no correct digit. The sign is flipped at the end.
            residual = chances.scatter_add_(1, chosen, torch.full_like(target, -1.0))
            rows[part] = (residual.to(weight.dtype) @ weight).div_(-tau)
            if weight.dtype == wide and entropy_rows is None:
                # E[z] = z(y) - d(log p(y))/dz . z, so the row gives the entropy without a pass.
                slope = (rows[part] * hidden[part]).sum(dim=1)
                if bias is not None:
                    slope -= (residual @ bias.to(wide)) / tau
                entropy[part] = slope - logprobs[part]
        if rows is not None:
            ctx.save_for_backward(rows, entropy_rows)
        if not by_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        rows, entropy_rows = ctx.saved_tensors
        of_hidden = upstream[0].unsqueeze(1) * rows
        if entropy_rows is not None:
            of_hidden += upstream[1].unsqueeze(1) * entropy_rows
        return of_hidden.to(rows.dtype), None, None, None, None, None


def chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tau: float
) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of ``hidden`` rows with their logits over tau, at least float32, in one buffer.

    The buffer is reused: fresh pages of this size cost a CPU a fifth of the product's time.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    size = max(1, CHUNK_ELEMENTS[weight.device.type] // weight.shape[0])
    buffer = hidden.new_empty((min(size, len(hidden)), weight.shape[0]), dtype=wide)
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        logits = _logits(hidden[part], weight, buffer)
        if bias is not None:
            logits += bias.to(wide)
        yield part, logits if tau == 1.0 else logits.div_(tau)


def _logits(hidden: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
    out = buffer[: len(hidden)]
    if weight.dtype == out.dtype:
        return torch.mm(hidden, weight.T, out=out)
    if hidden.is_cuda:
        return torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
    return torch.mm(hidden.to(out.dtype), weight.to(out.dtype).T, out=out)


def _softmax(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, written to ``out``, and the sum of exponents; logits are at most 0."""
    total = torch.exp(logits, out=out).sum(dim=1, keepdim=True)
    return out.div_(total), total


def evaluate(  # noqa: PLR0917
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    by_entropy: bool = False,
) -> Evaluated:
    """``targets`` [N] given ``hidden`` [N, H] and the head's ``weight`` [V, H], ``bias`` [V].

    ``by_entropy``: the entropy is differentiable too.
    """
    logprobs, entropy = _CompletionLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, temperature, by_entropy
    )
    return Evaluated(logprobs, entropy)
