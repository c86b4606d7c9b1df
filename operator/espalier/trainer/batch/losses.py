"""The built-in losses: per-token, summed, never averaged, with their gradient in closed form.

Source: the Tinker loss definitions. With lp the trainer's log-prob of a token, q the sampler's,
A its advantage, w its weight and r = exp(lp - q):

    cross_entropy        -w lp
    importance_sampling  -r A
    ppo                  -min(r A, clip(r, low, high) A)
    cispo                -stop_gradient(clip(r, low, high)) A lp
    dro                  -(lp A - beta/2 (lp - q)^2)
    gspo                 ppo with importance_level Sequence

With importance_level Sequence r is s = exp(m + lp - stop_gradient(lp)), with m the mean of
stop_gradient(lp) - q over the sequence's tokens of w != 0 (w is 1 but for gspo). Summed over a
sequence, that is the gradient of TRL's importance_sampling_level "sequence".

Thresholds are absolute ratios, not epsilons; ppo takes HUD's epsilon e for 1 - e and 1 + e.
Sums make gradients of several calls add exactly, whatever the split into calls, rows or machines;
``objective`` says what divides them. With ratio_anchor Trainer, q is the trainer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espalier.api.objective import Objective
from espalier.api.run.loss import level_of
from espalier.trainer.batch.tally import Tally
from espalier.trainer.problems import CommandError

DEFAULTS: dict[str, dict[str, float]] = {
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
    "gspo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cross_entropy": {},
}
# HUD's documented parameter of ppo, an alternative to Tinker's thresholds.
EPSILON = "epsilon"
# Losses that read a token's weight, and what they do with it.
WEIGHTED = {
    "cross_entropy": "the factor of the token's log-prob",
    "gspo": "0 leaves the token out of its sequence's ratio",
}
# Without advantage or weight these have no gradient, so they need a forward pass only.
_STILL_WITHOUT_ADVANTAGE = ("importance_sampling", "ppo", "cispo", "gspo")


# A sum of losses, with nothing corrected.
PLAIN = Objective()
NO_SUMS = Tally()


@dataclass(frozen=True)
class LossSpec:
    """A loss by name with every parameter set, and the rest of what a call optimizes."""

    name: str
    config: Mapping[str, float]
    objective: Objective = PLAIN

    @property
    def compares_policies(self) -> bool:
        """Whether the loss needs the sampler's log-probs and advantages."""
        return self.name != "cross_entropy"

    @property
    def by_sequence(self) -> bool:
        """Whether a sequence has one ratio."""
        return level_of(self.name, self.objective.importance_level) == "Sequence"

    @property
    def takes_weights(self) -> bool:
        """Whether the loss reads per-token weights."""
        return self.name in WEIGHTED

    def has_no_gradient(self, advantages: Sequence[float], weights: Sequence[float]) -> bool:
        """Whether a datum's gradient is exactly zero whatever the policy's log-probs."""
        if self.objective.kl.coefficient or self.objective.entropy_coefficient:
            return False
        if self.name == "cross_entropy":
            return not any(weights)
        return self.name in _STILL_WITHOUT_ADVANTAGE and not any(advantages)


@dataclass(frozen=True)
class TokenLoss:
    """``loss`` is the sum over tokens, ``gradient`` [N] its derivative by each log-prob; then come
    the tokens whose ratio was clipped from below and from above, the other ``sums``, and the
    derivative by each token's entropy, where there is one."""

    loss: float
    gradient: Tensor
    clipped_low: int = 0
    clipped_high: int = 0
    sums: Tally = NO_SUMS
    entropy_gradient: Tensor | None = None

    @property
    def still(self) -> Tensor:
        """[N], whether a token has no gradient at all."""
        none = self.gradient == 0
        return none if self.entropy_gradient is None else none & (self.entropy_gradient == 0)


def loss_spec(name: str, config: Mapping[str, float] | None) -> LossSpec:
    """The named loss with defaults filled in; 422 names an unknown name or key."""
    if name not in DEFAULTS:
        raise CommandError(
            422, "UnknownLoss", f"loss_fn {name!r} is unknown", f"use one of {', '.join(DEFAULTS)}"
        )
    defaults, given = DEFAULTS[name], dict(config or {})
    if name == "ppo" and EPSILON in given:
        given = _thresholds(given)
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        known = sorted([*defaults, EPSILON] if name == "ppo" else defaults)
        allowed = ", ".join(known) or "none: send no loss_fn_config"
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


def _thresholds(given: dict[str, float]) -> dict[str, float]:
    """The configuration with its epsilon replaced by the thresholds that it means."""
    epsilon = given[EPSILON]
    others = [name for name in given if name.endswith("_threshold")]
    if others or not 0 <= epsilon <= 1:
        raise CommandError(
            422,
            "InvalidLossParameter",
            f"loss_fn_config of ppo: epsilon {epsilon:g} "
            + (f"stands beside {', '.join(others)}" if others else "is out of range"),
            "0 <= epsilon <= 1 clips the ratio to 1 - epsilon and 1 + epsilon; send it alone or "
            "send clip_low_threshold and clip_high_threshold",
        )
    rest = {name: value for name, value in given.items() if name != EPSILON}
    return rest | {"clip_low_threshold": 1 - epsilon, "clip_high_threshold": 1 + epsilon}


@dataclass(frozen=True)
class Tokens:
    """N targets; all tensors are [N] of one dtype.

    ``lp`` are the policy's log-probs, ``q`` those that it is compared with, ``a`` advantages and
    ``w`` weights. ``sequences`` are the bounds (start, stop) of each datum's tokens among the N.
    """

    lp: Tensor
    q: Tensor
    a: Tensor
    w: Tensor
    sequences: Sequence[tuple[int, int]]

    def ratio(self, *, by_sequence: bool) -> Tensor:
        """The policy's probability over that which it is compared with, or ``by_sequence`` the
        geometric mean of it over the sequence's tokens of weight."""
        if not by_sequence:
            return (self.lp - self.q).exp()
        ratio = torch.empty_like(self.lp)
        for start, stop in self.sequences:
            part = slice(start, stop)
            trained = (self.w[part] != 0).to(self.lp.dtype)
            # A sequence without trained tokens has ratio 1.
            mean = ((self.lp[part] - self.q[part]) * trained).sum() / trained.sum().clamp_min(1)
            ratio[part] = mean.exp()
        return ratio


@dataclass(frozen=True)
class TokenLosses:
    """By token [N]: loss, its derivative by the log-prob, and whether its ratio was clipped."""

    loss: Tensor
    gradient: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def token_losses(spec: LossSpec, tokens: Tokens) -> TokenLosses:
    """The built-in loss of every token. Pure."""
    return TokenLosses(*_GRADIENTS[spec.name](spec, tokens))


_Parts = tuple[Tensor, Tensor, Tensor, Tensor]


def _unclipped(losses: Tensor, gradient: Tensor) -> _Parts:
    none = torch.zeros_like(losses, dtype=torch.bool)
    return losses, gradient, none, none


def _cross_entropy(_spec: LossSpec, t: Tokens) -> _Parts:
    return _unclipped(-t.w * t.lp, -t.w)


def _importance_sampling(spec: LossSpec, t: Tokens) -> _Parts:
    surrogate = -_ratio(spec, t) * t.a
    return _unclipped(surrogate, surrogate)


def _ratio(spec: LossSpec, t: Tokens) -> Tensor:
    return t.ratio(by_sequence=spec.by_sequence)


def _clip(spec: LossSpec, ratio: Tensor) -> Tensor:
    return ratio.clamp(spec.config["clip_low_threshold"], spec.config["clip_high_threshold"])


def _ppo(spec: LossSpec, t: Tokens) -> _Parts:
    """The ratio's derivative by the log-prob is the ratio itself."""
    ratio, a = _ratio(spec, t), t.a
    bounded = _clip(spec, ratio)
    clipped = bounded * a < ratio * a
    gradient = torch.where(clipped, torch.zeros_like(ratio), -ratio * a)
    losses = -torch.minimum(ratio * a, bounded * a)
    return losses, gradient, clipped & (ratio < bounded), clipped & (ratio > bounded)


def _cispo(spec: LossSpec, t: Tokens) -> _Parts:
    ratio = _ratio(spec, t)
    bounded = _clip(spec, ratio)
    return -bounded * t.a * t.lp, -bounded * t.a, ratio < bounded, ratio > bounded


def _dro(spec: LossSpec, t: Tokens) -> _Parts:
    beta, distance = spec.config["beta"], t.lp - t.q
    return _unclipped(-(t.lp * t.a - 0.5 * beta * distance**2), -t.a + beta * distance)


_GRADIENTS: dict[str, Callable[[LossSpec, Tokens], _Parts]] = {
    "importance_sampling": _importance_sampling,
    "ppo": _ppo,
    "cispo": _cispo,
    "dro": _dro,
    "gspo": _ppo,
    "cross_entropy": _cross_entropy,
}
