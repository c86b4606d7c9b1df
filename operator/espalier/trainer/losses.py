"""The built-in losses: per-token, summed, never averaged, with their gradient in closed form.

Source: the Tinker loss definitions. With lp the trainer's log-prob of a token, q the sampler's,
A its advantage, w its weight and r = exp(lp - q):

    cross_entropy        -w lp
    importance_sampling  -r A
    ppo                  -min(r A, clip(r, low, high) A)
    cispo                -stop_gradient(clip(r, low, high)) A lp
    dro                  -(lp A - beta/2 (lp - q)^2)

Thresholds are absolute ratios, not epsilons. Sums make gradients of several calls add exactly,
whatever the split into calls, rows or machines; any normalisation is the client's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from espalier.trainer.problems import CommandError

DEFAULTS: dict[str, dict[str, float]] = {
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
    "cross_entropy": {},
}


@dataclass(frozen=True)
class LossSpec:
    """A loss by name with every parameter set."""

    name: str
    config: Mapping[str, float]

    @property
    def compares_policies(self) -> bool:
        """Whether the loss needs the sampler's log-probs and advantages."""
        return self.name != "cross_entropy"


@dataclass(frozen=True)
class TokenLoss:
    """``loss`` is the sum over tokens, ``gradient`` [N] its derivative by each log-prob,
    ``clipped`` the number of tokens whose ratio was clipped."""

    loss: float
    gradient: Tensor
    clipped: int


def loss_spec(name: str, config: Mapping[str, float] | None) -> LossSpec:
    """The named loss with defaults filled in; an unknown name or key is a 422 listing the known."""
    if name not in DEFAULTS:
        raise CommandError(
            422, "UnknownLoss", f"loss_fn {name!r} is unknown", f"use one of {', '.join(DEFAULTS)}"
        )
    defaults, given = DEFAULTS[name], dict(config or {})
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        allowed = ", ".join(sorted(defaults)) or "none: send no loss_fn_config"
        raise CommandError(
            422,
            "UnknownLossParameter",
            f"loss_fn_config of {name} does not take {', '.join(unknown)}",
            f"allowed keys: {allowed}",
        )
    merged = defaults | given
    low, high = merged.get("clip_low_threshold", 0.0), merged.get("clip_high_threshold", 0.0)
    if low > high or merged.get("beta", 0.0) < 0 or low < 0:
        raise CommandError(
            422,
            "InvalidLossParameter",
            f"loss_fn_config {given} of {name} is out of range",
            "0 <= clip_low_threshold <= clip_high_threshold (ratios, not epsilons); beta >= 0",
        )
    return LossSpec(name, merged)


def token_loss(
    spec: LossSpec, logprobs: Tensor, sampling: Tensor, advantages: Tensor, weights: Tensor
) -> TokenLoss:
    """Loss and gradient of tokens; all tensors are [N] of one dtype. Pure."""
    gradient_of = _GRADIENTS[spec.name]
    losses, gradient, clipped = gradient_of(spec, logprobs, sampling, advantages, weights)
    return TokenLoss(float(losses.double().sum()), gradient, int(clipped.sum()))


_Parts = tuple[Tensor, Tensor, Tensor]


def _unclipped(logprobs: Tensor) -> Tensor:
    return torch.zeros_like(logprobs, dtype=torch.bool)


def _cross_entropy(_spec: LossSpec, lp: Tensor, _q: Tensor, _a: Tensor, w: Tensor) -> _Parts:
    return -w * lp, -w, _unclipped(lp)


def _importance_sampling(_spec: LossSpec, lp: Tensor, q: Tensor, a: Tensor, _w: Tensor) -> _Parts:
    surrogate = -(lp - q).exp() * a
    return surrogate, surrogate, _unclipped(lp)


def _clip(spec: LossSpec, ratio: Tensor) -> Tensor:
    return ratio.clamp(spec.config["clip_low_threshold"], spec.config["clip_high_threshold"])


def _ppo(spec: LossSpec, lp: Tensor, q: Tensor, a: Tensor, _w: Tensor) -> _Parts:
    ratio = (lp - q).exp()
    free, bounded = ratio * a, _clip(spec, ratio) * a
    clipped = bounded < free
    return -torch.minimum(free, bounded), torch.where(clipped, torch.zeros_like(lp), -free), clipped


def _cispo(spec: LossSpec, lp: Tensor, q: Tensor, a: Tensor, _w: Tensor) -> _Parts:
    ratio = (lp - q).exp()
    bounded = _clip(spec, ratio)
    return -bounded * a * lp, -bounded * a, bounded != ratio


def _dro(spec: LossSpec, lp: Tensor, q: Tensor, a: Tensor, _w: Tensor) -> _Parts:
    beta, distance = spec.config["beta"], lp - q
    return -(lp * a - 0.5 * beta * distance**2), -a + beta * distance, _unclipped(lp)


_GRADIENTS: dict[str, Callable[[LossSpec, Tensor, Tensor, Tensor, Tensor], _Parts]] = {
    "importance_sampling": _importance_sampling,
    "ppo": _ppo,
    "cispo": _cispo,
    "dro": _dro,
    "cross_entropy": _cross_entropy,
}
