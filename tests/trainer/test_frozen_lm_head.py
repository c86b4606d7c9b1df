"""The head: log-probs, their derivatives and entropies, chunk by chunk."""

from __future__ import annotations

import pytest
import torch

from espalier.trainer.policy import frozen_lm_head


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_head_equals_the_softmax_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, temperature: float, with_bias: bool
) -> None:
    monkeypatch.setitem(frozen_lm_head.CHUNK_ELEMENTS, "cpu", 3 * 40)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 8, generator=generator).double()
    bias = torch.randn(40, generator=generator).double() if with_bias else None
    targets = torch.randint(0, 40, (10,), generator=generator)
    given = torch.randn(10, generator=generator).double()
    hidden = torch.randn(10, 8, generator=generator).double().requires_grad_()
    plain = hidden.detach().clone().requires_grad_()

    made = frozen_lm_head.evaluate(hidden, weight, bias, targets, temperature)
    logits = torch.nn.functional.linear(plain, weight, bias) / temperature
    expected = torch.distributions.Categorical(logits=logits)
    made.logprobs.backward(given)
    expected.log_prob(targets).backward(given)

    torch.testing.assert_close(made.logprobs, expected.log_prob(targets), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.entropy, expected.entropy(), rtol=1e-12, atol=1e-12)
    assert not made.entropy.requires_grad
    torch.testing.assert_close(hidden.grad, plain.grad, rtol=1e-12, atol=1e-12)
