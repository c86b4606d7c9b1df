"""Log-probs of given tokens under a trained output head.

The Jacobian rows of ``frozen_lm_head`` do not give the gradient of its weight, which depends
on the loss. So the logits are computed again in backward, chunk by chunk, with the normalisers of
the forward pass: with z = h W' / temperature and p = softmax(z), and g = dLoss/dlogprob, the
gradient of z is r = g (onehot(y) - p) / temperature, that of h is r W and that of W is r' h. With
k = dLoss/dH of the entropy H, where that is asked for, r also has -k p (log p + H) / temperature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from espalier.trainer.policy.frozen_lm_head import Evaluated, chunks


class _TrainedLogprobs(torch.autograd.Function):
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
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for part, logits in chunks(hidden, weight, bias, tau):
            normaliser[part] = logits.logsumexp(dim=1)
            logits.sub_(normaliser[part].unsqueeze(1))
            logprobs[part] = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)
            entropy[part] = -(logits.exp().unsqueeze(1) @ logits.unsqueeze(2)).flatten()
        kept = entropy.clone() if by_entropy else None
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, kept)
        ctx.tau = tau
        if not by_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        wide = normaliser.dtype
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=wide)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for part, logits in chunks(hidden, weight, bias, ctx.tau):
            logits.sub_(normaliser[part].unsqueeze(1))
            spread = None
            if entropy is not None:
                spread = (logits + entropy[part].unsqueeze(1)).mul_(logits.exp())
                spread *= upstream[1][part].unsqueeze(1) / -ctx.tau
            residual = logits.exp_().neg_()
            chosen = targets[part].unsqueeze(1)
            residual.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=wide))
            residual *= upstream[0][part].unsqueeze(1) / ctx.tau
            if spread is not None:
                residual += spread
            of_hidden[part] = residual.to(weight.dtype) @ weight
            of_weight.addmm_(residual.T, hidden[part].to(wide))
            if of_bias is not None:
                of_bias += residual.sum(dim=0)
        narrow = None if of_bias is None else of_bias.to(weight.dtype)
        return of_hidden, of_weight.to(weight.dtype), narrow, None, None, None


def evaluate(  # noqa: PLR0917
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    by_entropy: bool = False,
) -> Evaluated:
    """As ``frozen_lm_head.evaluate``; also differentiable by ``weight`` and ``bias``."""
    logprobs, entropy = _TrainedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, temperature, by_entropy
    )
    return Evaluated(logprobs, entropy)
