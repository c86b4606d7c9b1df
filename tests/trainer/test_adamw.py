"""AdamW against the formula written out, with the values of each call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from espalier.api.wire.step import OptimStepRequest
from espalier.trainer.compute.adamw import Moments, Proposal, fresh_moments, propose

CALLS = (
    OptimStepRequest(learning_rate=0.03, beta1=0.8, beta2=0.9, eps=1e-5, weight_decay=0.1),
    OptimStepRequest(learning_rate=0.01, beta1=0.0, beta2=0.99, eps=1e-12, grad_clip_norm=0.5),
    OptimStepRequest(learning_rate=0.2, beta1=0.95, beta2=0.5, eps=1.0, weight_decay=0.01),
    OptimStepRequest(learning_rate=1e-4, grad_clip_norm=1e6),
)


def by_hand(  # noqa: PLR0917
    value: Tensor, first: Tensor, second: Tensor, g: Tensor, step: int, call: OptimStepRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """Loshchilov and Hutter, decoupled weight decay, bias-corrected."""
    first = call.beta1 * first + (1 - call.beta1) * g
    second = call.beta2 * second + (1 - call.beta2) * g**2
    direction = (first / (1 - call.beta1**step)) / (
        (second / (1 - call.beta2**step)).sqrt() + call.eps
    )
    decayed = value * (1 - call.learning_rate * call.weight_decay)
    return decayed - call.learning_rate * direction, first, second


def parameters(generator: torch.Generator) -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in (("a", (3, 4)), ("b", (5,)))
    }


def installed(current: dict[str, nn.Parameter], proposal: Proposal) -> Moments:
    with torch.no_grad():
        for name, parameter in current.items():
            parameter.copy_(proposal.parameters[name])
    return proposal.moments


def test_every_value_is_the_calls_own_from_step_to_step() -> None:
    generator = torch.Generator().manual_seed(0)
    current = parameters(generator)
    moments = fresh_moments(current)
    expected = {
        n: (p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p))
        for n, p in current.items()
    }
    for step, call in enumerate(CALLS, start=1):
        for parameter in current.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        gradients = {n: p.grad for n, p in current.items() if p.grad is not None}
        norm = float(torch.cat([g.flatten() for g in gradients.values()]).norm())
        scale = min(1.0, call.grad_clip_norm / norm) if call.grad_clip_norm else 1.0
        proposal = propose(current, moments, call)
        assert proposal.gradient_norm == pytest.approx(norm, rel=1e-12)
        for name, gradient in gradients.items():
            expected[name] = by_hand(*expected[name], gradient * scale, step, call)
        moments = installed(current, proposal)
        for name, (value, first, second) in expected.items():
            torch.testing.assert_close(proposal.parameters[name], value, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(moments.first[name], first, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(moments.second[name], second, rtol=1e-12, atol=1e-14)


def test_the_clip_is_by_the_norm_over_all_parameters() -> None:
    current = parameters(torch.Generator().manual_seed(0))
    for parameter, value in zip(current.values(), (3.0, 4.0), strict=True):
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.view(-1)[0] = value
    call = OptimStepRequest(learning_rate=0.1, beta1=0.0, grad_clip_norm=1.0)
    proposal = propose(current, fresh_moments(current), call)
    assert proposal.gradient_norm == pytest.approx(5.0)
    firsts = [float(proposal.moments.first[name].view(-1)[0]) for name in current]
    assert firsts == pytest.approx([0.6, 0.8])


def test_a_parameter_without_gradient_is_only_decayed() -> None:
    current = parameters(torch.Generator().manual_seed(0))
    call = OptimStepRequest(learning_rate=0.1, weight_decay=0.5)
    proposal = propose(current, fresh_moments(current), call)
    for name, parameter in current.items():
        torch.testing.assert_close(proposal.parameters[name], parameter.detach() * 0.95)
