"""AdamW as a proposal: computes new tensors beside the old; they are installed once durable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espalier.api.wire.step import OptimStepRequest
from espalier.trainer.volume.shapes import State
from espalier.trainer.volume.tensor_files import FIRST, SECOND


@dataclass(frozen=True)
class Moments:
    """Adam's state by parameter name, float32, after ``steps`` optimizer steps."""

    first: State
    second: State
    steps: int

    def tensors(self) -> State:
        """One flat dictionary, as a checkpoint holds it."""
        first = {f"{name}.{FIRST}": value for name, value in self.first.items()}
        return first | {f"{name}.{SECOND}": value for name, value in self.second.items()}


@dataclass(frozen=True)
class Proposal:
    """The result of a step, which changes nothing until it is installed.

    ``finite``: whether the gradient and every new weight are.
    """

    parameters: State
    moments: Moments
    gradient_norm: float
    finite: bool

    def tensors(self) -> State:
        """Weights and moments, as a checkpoint holds them."""
        return self.parameters | self.moments.tensors()


def fresh_moments(parameters: Mapping[str, Tensor]) -> Moments:
    """Adam before its first step."""
    zeros = {name: torch.zeros_like(value).detach() for name, value in parameters.items()}
    return Moments(zeros, {name: value.clone() for name, value in zeros.items()}, 0)


def read_moments(tensors: Mapping[str, Tensor], steps: int, device: torch.device) -> Moments:
    """The inverse of ``Moments.tensors``, on a device; it keeps nothing of ``tensors``' memory."""

    def named(moment: str) -> State:
        ending = f".{moment}"
        return {
            name.removesuffix(ending): value.to(device, copy=True)
            for name, value in tensors.items()
            if name.endswith(ending)
        }

    return Moments(named(FIRST), named(SECOND), steps)


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> float:
    """The global L2 norm of the accumulated gradients; not finite if any of them is not."""
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not gradients:
        return 0.0
    return float(torch.nn.utils.get_total_norm(gradients))


def propose(
    parameters: Mapping[str, nn.Parameter],
    moments: Moments,
    values: OptimStepRequest,
    norm: float | None = None,
    factor: float = 1.0,
) -> Proposal:
    """One AdamW step with this call's values; ``grad_clip_norm`` 0 is off. Pure.

    ``norm`` is the norm of all accumulated gradients, for ``parameters`` that are a part of them.
    The gradient of the step, and its norm, are ``factor`` times what is accumulated.
    """
    if norm is None:
        norm = gradient_norm(parameters)
    norm *= factor
    clip = 1.0
    if values.grad_clip_norm and norm > values.grad_clip_norm:
        clip = values.grad_clip_norm / norm
    copies = {name: nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(
        list(copies.values()),
        lr=values.learning_rate,
        betas=(values.beta1, values.beta2),
        eps=values.eps,
        weight_decay=values.weight_decay,
    )
    for name, copy in copies.items():
        gradient = parameters[name].grad
        copy.grad = torch.zeros_like(copy) if gradient is None else gradient * (factor * clip)
        optimizer.state[copy] = {
            "step": torch.tensor(float(moments.steps)),
            FIRST: moments.first[name].clone(),
            SECOND: moments.second[name].clone(),
        }
    optimizer.step()
    proposed = {name: copy.detach() for name, copy in copies.items()}
    return Proposal(
        parameters=proposed,
        moments=Moments(
            {name: optimizer.state[copy][FIRST] for name, copy in copies.items()},
            {name: optimizer.state[copy][SECOND] for name, copy in copies.items()},
            moments.steps + 1,
        ),
        gradient_norm=norm,
        finite=math.isfinite(norm) and all(bool(v.isfinite().all()) for v in proposed.values()),
    )
