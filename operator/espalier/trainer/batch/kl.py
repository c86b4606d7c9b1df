"""The penalty on the distance from a reference policy. Pure.

With d the policy's minus the reference's log-prob of a sampled token, KL(policy || reference) is
estimated by K1 = d, K2 = d^2/2 or K3 = exp(-d) - 1 + d (http://joschu.net/blog/kl-approx.html).

    Advantage   A += coefficient (mean of all tokens' estimates - the token's own), where the
                policy's log-prob is the sampler's; with a discount g, the sum of g^k times that of
                the k-th token after it, in its sample. Source: tinker-cookbook.
    Loss        loss += coefficient * estimate, where the policy's log-prob is the current one
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from espalier.api.objective import Kl
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.problems import invalid

# Bounds exp(-d): a reference may find a token infinitely more likely.
MAX_LOG_RATIO = 80.0


def check(kl: Kl, spec: LossSpec) -> None:
    """422 for what does not go together."""
    if kl.coefficient and kl.reference is None:
        raise invalid(
            "kl.reference",
            f"is missing, and kl.coefficient is {kl.coefficient:g}",
            "send reference Base or Checkpoint, or coefficient 0",
        )
    if (kl.reference == "Checkpoint") != (kl.checkpoint is not None):
        raise invalid(
            "kl.checkpoint",
            f"is {kl.checkpoint}, and kl.reference is {kl.reference}",
            "send the checkpoint's name with reference Checkpoint, and with no other",
        )
    if kl.placement == "Loss" and kl.estimates == "K1":
        raise invalid(
            "kl.estimator",
            "is K1 in the Loss, where the mean of its gradient is zero",
            "choose K2 or K3, or placement Advantage",
        )
    if kl.placement == "Loss" and kl.discount:
        raise invalid(
            "kl.discount",
            "is given, and placement is Loss",
            "leave it out, or choose placement Advantage",
        )
    if kl.reference is not None and kl.placement == "Advantage" and not spec.compares_policies:
        raise invalid(
            "kl.placement",
            f"is Advantage, and {spec.name} reads no advantages",
            "choose placement Loss, or another loss",
        )


def with_reference(
    spec: LossSpec, data: Sequence[Datum], logprobs: Sequence[Sequence[float]]
) -> list[Datum]:
    """The datums with the reference's log-probs, and what these change in the advantages."""
    held = [
        replace(datum, reference_logprobs=tuple(row))
        for datum, row in zip(data, logprobs, strict=True)
    ]
    kl = spec.objective.kl
    if kl.placement == "Loss" or not kl.coefficient:
        return held
    found = [
        [
            _estimate(kl, q - r)
            for q, r in zip(d.sampling_logprobs, d.reference_logprobs, strict=True)
        ]
        for d in held
    ]
    mean = fmean([value for row in found for value in row])
    return [
        replace(datum, token_advantages=_penalised(datum, row, mean, kl))
        for datum, row in zip(held, found, strict=True)
    ]


def _penalised(datum: Datum, row: Sequence[float], mean: float, kl: Kl) -> tuple[float, ...]:
    later, result = 0.0, []
    for value, advantage in zip(reversed(row), reversed(datum.advantages), strict=True):
        later = kl.coefficient * (mean - value) + kl.discount * later
        result.append(advantage + later)
    return tuple(reversed(result))


def _estimate(kl: Kl, d: float) -> float:
    if kl.estimates == "K1":
        return d
    if kl.estimates == "K2":
        return d * d / 2
    return math.exp(min(-d, MAX_LOG_RATIO)) - 1 + d


@dataclass(frozen=True)
class Penalty:
    """By token [N] the loss and its derivative by the log-prob; over the ``referred`` tokens the
    sum of the K3 estimates, ``distance``."""

    loss: Tensor
    gradient: Tensor
    referred: int
    distance: float


def of_tokens(kl: Kl, logprobs: Tensor, reference: Tensor, trained: Tensor) -> Penalty:
    """The penalty of N tokens; nothing is added where placement is Advantage. All are [N]."""
    d = logprobs - reference
    bounded = (-d).clamp(max=MAX_LOG_RATIO)
    third = bounded.expm1() + d
    distance = float(third.double()[trained].sum())
    if kl.placement == "Advantage":
        nothing = torch.zeros_like(d)
        return Penalty(nothing, nothing, int(trained.sum()), distance)
    estimate, slope = (d * d / 2, d) if kl.estimates == "K2" else (third, -bounded.expm1())
    factor = kl.coefficient * trained
    return Penalty(factor * estimate, factor * slope, int(trained.sum()), distance)
