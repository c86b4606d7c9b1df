"""From the losses of tokens to what a call optimizes: its anchor, its correction, its shares.

With lp the policy's log-prob of a token, q the sampler's and o the trainer's own first one, a loss
is taken of lp and q (ratio_anchor Sampler) or of lp and o (Trainer), and multiplied by a constant
weight c of r = exp(lp - q), or with Trainer r = exp(o - q):

    TokenTruncate     c = min(r, max)
    TokenMask         c = 1 where min <= r <= max, else 0
    Sequence...       the same, with r the geometric mean over the tokens of the sequence

A masked token stays in the number that the aggregation divides by. An entropy bonus takes
entropy_coefficient times a token's entropy off its loss. Gradients of a call are sums, of a
sequence's mean for SequenceMean, and ``Tally.step_factor`` divides them once a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espalier.api.objective import Objective
from espalier.api.run.loss import OF_A_RATIO
from espalier.api.wire.gradients import ForwardBackwardRequest
from espalier.trainer.batch import kl
from espalier.trainer.batch.losses import LossSpec, TokenLoss, Tokens, loss_spec, token_losses
from espalier.trainer.batch.tally import Tally
from espalier.trainer.problems import invalid


def call_spec(request: ForwardBackwardRequest) -> LossSpec:
    """What a call optimizes; 422 names what does not go together."""
    spec = loss_spec(request.loss_fn, request.loss_fn_config)
    objective = Objective(**{name: getattr(request, name) for name in Objective.model_fields})
    _check_aggregation(objective)
    _check_level(objective, spec)
    _check_correction(objective, spec)
    kl.check(objective.kl, spec)
    return replace(spec, objective=objective)


def _check_aggregation(objective: Objective) -> None:
    constant = objective.aggregation_constant
    if (objective.aggregation == "Constant") != (constant is not None):
        raise invalid(
            "aggregation_constant",
            f"is {constant}, and aggregation is {objective.aggregation}",
            "send it with aggregation Constant, and with no other",
        )


def _check_level(objective: Objective, spec: LossSpec) -> None:
    level = objective.importance_level
    if level == "Sequence" and spec.name not in OF_A_RATIO:
        raise invalid(
            "importance_level",
            f"is Sequence, and {spec.name} has no ratio",
            f"leave it out, or choose one of {', '.join(OF_A_RATIO)}",
        )
    if level == "Token" and spec.name == "gspo":
        raise invalid(
            "importance_level",
            "is Token, and gspo has one ratio for a whole sequence",
            "leave it out, or choose ppo",
        )


def _check_correction(objective: Objective, spec: LossSpec) -> None:
    correction = objective.correction
    low, high = correction.bounds
    if not spec.compares_policies and (correction.mode, objective.ratio_anchor) != (
        "None",
        "Sampler",
    ):
        raise invalid(
            "ratio_anchor" if correction.mode == "None" else "correction",
            f"is given, and {spec.name} compares with no log-probs",
            "leave it out, or choose another loss",
        )
    if correction.mode.endswith("Truncate") and objective.ratio_anchor == "Sampler":
        raise invalid(
            "correction.mode",
            f"is {correction.mode}, and with ratio_anchor Sampler the ratio of the loss is the "
            "whole weight already",
            "choose TokenMask or SequenceMask, or send ratio_anchor Trainer",
        )
    if correction.max_ratio is not None and correction.mode == "None":
        raise invalid(
            "correction.max_ratio", "is given without a mode", "leave it out, or choose a mode"
        )
    if correction.min_ratio is not None and not correction.mode.endswith("Mask"):
        raise invalid(
            "correction.min_ratio",
            f"is given, and mode is {correction.mode}",
            "leave it out, or choose TokenMask or SequenceMask",
        )
    if low > high:
        raise invalid("correction.min_ratio", f"{low:g} is above max_ratio {high:g}", "swap them")


@dataclass(frozen=True)
class CallTokens:
    """N targets; tensors are [N] of one dtype. ``anchor`` None: the policy's own log-probs now;
    ``reference`` None: the call has no reference policy; ``counted`` None: metrics count all."""

    logprobs: Tensor
    sampling: Tensor
    anchor: Tensor | None
    advantages: Tensor
    weights: Tensor
    sequences: list[tuple[int, int]]
    reference: Tensor | None = None
    entropy: Tensor | None = None
    counted: Tensor | None = None


def token_loss(spec: LossSpec, t: CallTokens) -> TokenLoss:
    """What a call adds for N tokens: loss, its gradient by the log-probs, and its sums. Pure."""
    own = spec.objective.ratio_anchor == "Trainer"
    first = t.logprobs if t.anchor is None else t.anchor
    compared = first if own else t.sampling
    losses = token_losses(spec, Tokens(t.logprobs, compared, t.advantages, t.weights, t.sequences))
    loss, gradient = losses.loss, losses.gradient
    sums = _counts(spec, t)
    if spec.objective.correction.mode != "None":
        weight, corrected = _weights(spec.objective, (first if own else t.logprobs) - t.sampling, t)
        sums = sums + corrected
        # Not a product: what is masked may be infinite.
        loss = torch.where(weight == 0, 0, weight * loss)
        gradient = torch.where(weight == 0, 0, weight * gradient)
    if t.reference is not None:
        penalty = kl.of_tokens(spec.objective.kl, t.logprobs, t.reference, _trained(spec, t))
        loss, gradient = loss + penalty.loss, gradient + penalty.gradient
        sums = replace(sums, referred=penalty.referred, reference_kl_sum=penalty.distance)
    entropy_gradient = None
    if (bonus := spec.objective.entropy_coefficient) and t.entropy is not None:
        entropy_gradient = -bonus * _trained(spec, t).to(t.entropy.dtype)
        loss = loss + entropy_gradient * t.entropy
    if spec.objective.aggregation == "SequenceMean":
        shares = _shares(spec, t)
        gradient = gradient * shares
        entropy_gradient = None if entropy_gradient is None else entropy_gradient * shares
    return TokenLoss(
        float(loss.double().sum()),
        gradient,
        _count(losses.clipped_low, t),
        _count(losses.clipped_high, t),
        sums,
        entropy_gradient,
    )


def _count(chosen: Tensor, t: CallTokens) -> int:
    return int((chosen if t.counted is None else chosen & t.counted).sum())


def _trained(spec: LossSpec, t: CallTokens) -> Tensor:
    """[N], whether a token counts: a weight of 0 takes it out of cross_entropy."""
    return t.weights != 0 if spec.name == "cross_entropy" else torch.ones_like(t.weights).bool()


def _counts(spec: LossSpec, t: CallTokens) -> Tally:
    trained = _trained(spec, t)
    return Tally(
        aggregation=spec.objective.aggregation,
        aggregation_constant=spec.objective.aggregation_constant,
        counted=int(trained.sum()),
        sequences=sum(bool(trained[start:stop].any()) for start, stop in t.sequences),
    )


def _shares(spec: LossSpec, t: CallTokens) -> Tensor:
    """[N], 1 over the number of trained tokens of the token's sequence."""
    trained, shares = _trained(spec, t), torch.zeros_like(t.weights)
    for start, stop in t.sequences:
        shares[start:stop] = 1 / max(1, int(trained[start:stop].sum()))
    return shares


def _weights(objective: Objective, log_ratio: Tensor, t: CallTokens) -> tuple[Tensor, Tally]:
    """[N], the off-policy weight of every token, and the sums of them."""
    low, high = objective.correction.bounds
    ratio = log_ratio
    if objective.correction.mode.startswith("Sequence"):
        ratio = torch.empty_like(log_ratio)
        for start, stop in t.sequences:
            ratio[start:stop] = log_ratio[start:stop].mean()
    ratio = ratio.exp()
    masked = truncated = torch.zeros_like(ratio, dtype=torch.bool)
    if objective.correction.mode.endswith("Mask"):
        masked = (ratio < low) | (ratio > high)
        weight = torch.where(masked, torch.zeros_like(ratio), torch.ones_like(ratio))
    else:
        truncated = ratio > high
        weight = ratio.clamp(max=high)
    return weight, Tally(
        aggregation=objective.aggregation,
        aggregation_constant=objective.aggregation_constant,
        corrected=len(weight),
        correction_truncated=int(truncated.sum()),
        correction_masked=int(masked.sum()),
        correction_weight_sum=float(weight.double().sum()),
    )
