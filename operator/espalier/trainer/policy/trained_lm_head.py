"""Log-probs of given tokens under a trained output head.

The Jacobian rows of ``frozen_lm_head`` do not give the gradient of its weight, which depends
on the loss. So the logits are computed again in backward, chunk by chunk, with the normalisers of
the forward pass: with z = h W' / temperature and p = softmax(z), and g = dLoss/dlogprob, the
gradient of z is r = g (onehot(y) - p) / temperature, that of h is r W and that of W is r' h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from espalier.trainer.policy.frozen_lm_head import Evaluated, chunks


class _TrainedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, tau: float
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for part, logits in chunks(hidden, weight, bias, tau):
            normaliser[part] = logits.logsumexp(dim=1)
            logits.sub_(normaliser[part].unsqueeze(1))
            logprobs[part] = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)
            entropy[part] = -(logits.exp().unsqueeze(1) @ logits.unsqueeze(2)).flatten()
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.tau = tau
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        wide = normaliser.dtype
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=wide)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for part, logits in chunks(hidden, weight, bias, ctx.tau):
            residual = logits.sub_(normaliser[part].unsqueeze(1)).exp_().neg_()
            chosen = targets[part].unsqueeze(1)
            residual.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=wide))
            residual *= upstream[0][part].unsqueeze(1) / ctx.tau
            of_hidden[part] = residual.to(weight.dtype) @ weight
            of_weight.addmm_(residual.T, hidden[part].to(wide))
            if of_bias is not None:
                of_bias += residual.sum(dim=0)
        narrow = None if of_bias is None else of_bias.to(weight.dtype)
        return of_hidden, of_weight.to(weight.dtype), narrow, None, None


def evaluate(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> Evaluated:
    """As ``frozen_lm_head.evaluate``; also differentiable by ``weight`` and ``bias``."""
    logprobs, entropy = _TrainedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, temperature
    )
    return Evaluated(logprobs, entropy)
