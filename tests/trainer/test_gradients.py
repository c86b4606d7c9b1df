"""Packed rows against the padded, full-logits way of computing the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.trainer import tiny
from torch import Tensor
from transformers.models.llama import modeling_llama

from espalier.api.wire import ForwardRequest
from espalier.trainer import gradients
from espalier.trainer.data import Datum, Limits, datums
from espalier.trainer.losses import DEFAULTS, loss_spec, token_loss
from espalier.trainer.model import Policy
from espalier.trainer.optimizer import fresh_moments, propose


def rms_norm(self: modeling_llama.LlamaRMSNorm, hidden: Tensor) -> Tensor:
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[Policy]:
    """The tiny policy in float64; its RMSNorm would otherwise compute in float32."""
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", rms_norm)
    made = Policy(tiny.causal_lm().double(), tiny.ADAPTER, torch.device("cpu"))
    made._peft.double()
    perturb(made)
    yield made


def perturb(policy: Policy) -> None:
    """Moves the adapter off its start, where B is zero and half the gradient with it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise.to(parameter.dtype))


def data(seed: int = 0) -> list[Datum]:
    request = tiny.forward_backward(seed)
    return datums(request, tiny_limits(), policies_compared=True)


def tiny_limits() -> Limits:
    return Limits(tiny.VOCABULARY, 128)


def padded_logprobs(policy: Policy, batch: list[Datum], temperature: float) -> list[Tensor]:
    """The naive way: one padded batch, logits of every position."""
    longest = max(len(d.prompt + d.output) for d in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for index, datum in enumerate(batch):
        ids[index, : len(datum.prompt + datum.output)] = torch.tensor(datum.prompt + datum.output)
        attention[index, : len(datum.prompt + datum.output)] = 1
    logits = policy._causal_lm(input_ids=ids, attention_mask=attention, use_cache=False).logits
    everything = (logits / temperature).log_softmax(dim=-1)
    result = []
    for index, datum in enumerate(batch):
        start = len(datum.prompt) - 1
        chosen = torch.tensor(datum.output)[:, None]
        scored = everything[index, start : start + len(datum.output)]
        result.append(scored.gather(1, chosen).squeeze(1))
    return result


def naive_gradient(
    policy: Policy, batch: list[Datum], loss: str, temperature: float
) -> dict[str, Tensor]:
    policy.drop_gradients()
    logprobs = torch.cat(padded_logprobs(policy, batch, temperature))
    sampling = torch.tensor([q for d in batch for q in d.sampling_logprobs], dtype=logprobs.dtype)
    advantages = torch.tensor([d.advantage for d in batch for _ in d.output], dtype=logprobs.dtype)
    weights = torch.ones_like(logprobs)
    part = token_loss(loss_spec(loss, None), logprobs.detach(), sampling, advantages, weights)
    logprobs.backward(part.gradient)
    return taken(policy)


def taken(policy: Policy) -> dict[str, Tensor]:
    result = {n: p.grad.clone() for n, p in policy.parameters.items() if p.grad is not None}
    policy.drop_gradients()
    assert result
    return result


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The worst tensor's largest difference relative to its largest gradient."""
    assert one.keys() == other.keys()
    return max(
        float((one[n] - other[n]).abs().max() / other[n].abs().max().clamp_min(1e-30))
        for n in other
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("loss", list(DEFAULTS))
def test_gradients_equal_the_padded_ones_in_float64(
    wide: Policy, loss: str, temperature: float
) -> None:
    batch = data()
    wide.row_tokens = 20
    gradients.add_loss(wide, batch, loss_spec(loss, None), temperature, 3)
    assert difference(taken(wide), naive_gradient(wide, batch, loss, temperature)) < 1e-12


def test_gradients_and_logprobs_equal_the_padded_ones_in_float32(policy: Policy) -> None:
    perturb(policy)
    batch = data()
    scored = np.concatenate(gradients.score(policy, batch, 0.7))
    with torch.no_grad():
        naive = torch.cat(padded_logprobs(policy, batch, 0.7)).numpy()
    assert np.abs(scored - naive).max() < 1e-5
    gradients.add_loss(policy, batch, loss_spec("importance_sampling", None), 0.7, 3)
    assert (
        difference(taken(policy), naive_gradient(policy, batch, "importance_sampling", 0.7)) < 1e-5
    )


def test_one_call_equals_several(policy: Policy) -> None:
    perturb(policy)
    spec, whole = loss_spec("ppo", None), data()
    together = gradients.add_loss(policy, whole, spec, 1.0, 3)
    once = taken(policy)
    tallies = [
        gradients.add_loss(policy, whole[a:b], spec, 1.0, 3) for a, b in pairwise((0, 1, 4, 6))
    ]
    assert difference(taken(policy), once) < 1e-5
    several = gradients.total(tallies)
    assert several.loss == pytest.approx(together.loss, rel=1e-5)
    assert (several.tokens, several.compared) == (together.tokens, together.compared)


def test_a_sample_does_not_see_its_neighbours(policy: Policy) -> None:
    batch = data()
    before = gradients.score(policy, batch, 1.0)
    changed = batch[0]
    other = Datum(
        changed.prompt, tuple((t + 1) % 256 for t in changed.output), changed.sampling_logprobs,
        0.0, 0.0, 0, 0,
    )  # fmt: skip
    after = gradients.score(policy, [other, *batch[1:]], 1.0)
    assert np.abs(np.concatenate(after[1:]) - np.concatenate(before[1:])).max() < 1e-5
    assert after[0][1:] != before[0][1:] or len(changed.output) == 1


def test_a_custom_loss_through_its_weights_equals_the_built_in(policy: Policy) -> None:
    perturb(policy)
    batch = data()
    gradients.add_loss(policy, batch, loss_spec("importance_sampling", None), 1.0, 3)
    built_in = taken(policy)
    weights = []
    for datum, logprobs in zip(batch, gradients.score(policy, batch, 1.0), strict=True):
        leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
        loss = -((leaf - torch.tensor(datum.sampling_logprobs)).exp() * datum.advantage).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        weights.append((-gradient).tolist())
    gradients.add_weights(policy, batch, weights, 1.0, given={}, group_size=3)
    assert difference(taken(policy), built_in) < 1e-5


def test_the_tally_compares_trainer_and_sampler(policy: Policy) -> None:
    request = ForwardRequest(inputs=tiny.trajectories())
    batch = datums(request, policy.limits, policies_compared=True)
    tally = gradients.add_loss(policy, batch, loss_spec("dro", None), 1.0, None)
    d = np.concatenate(gradients.score(policy, batch, 1.0)) - np.concatenate(
        [datum.sampling_logprobs for datum in batch]
    )
    metrics = tally.checkpoint_metrics()
    assert metrics["logprob/difference_max"] == pytest.approx(np.abs(d).max(), rel=1e-4)
    assert metrics["logprob/difference_mean"] == pytest.approx(np.abs(d).mean(), rel=1e-4)
    assert metrics["policy/mismatch_kl"] == pytest.approx((np.exp(d) - 1 - d).mean(), rel=1e-3)
    assert metrics["reward/mean"] == pytest.approx(np.mean([t.reward for t in tiny.trajectories()]))


def test_a_step_is_adamw_with_the_values_of_the_call(policy: Policy) -> None:
    gradients.add_loss(policy, data(), loss_spec("importance_sampling", None), 1.0, 3)
    values = tiny.optim_step(
        learning_rate=0.03, beta1=0.8, beta2=0.9, eps=1e-5, weight_decay=0.1, grad_clip_norm=0.5
    )
    norm = float(torch.stack([p.grad.norm() for p in policy.parameters.values()]).norm())
    assert norm > 0.5
    proposal = propose(policy.parameters, fresh_moments(policy.parameters), values)
    assert proposal.gradient_norm == pytest.approx(norm)
    for name, parameter in policy.parameters.items():
        assert parameter.grad is not None
        g = parameter.grad.double() * 0.5 / norm
        first, second = 0.2 * g, 0.1 * g**2
        update = (first / 0.2) / ((second / 0.1).sqrt() + 1e-5)
        expected = parameter.detach().double() * (1 - 0.03 * 0.1) - 0.03 * update
        torch.testing.assert_close(
            proposal.parameters[name].double(), expected, rtol=1e-5, atol=1e-7
        )


def test_a_proposal_changes_nothing_by_itself(policy: Policy) -> None:
    gradients.add_loss(policy, data(), loss_spec("importance_sampling", None), 1.0, 3)
    before = {n: p.detach().clone() for n, p in policy.parameters.items()}
    moments = fresh_moments(policy.parameters)
    propose(policy.parameters, moments, tiny.optim_step())
    assert all(torch.equal(before[n], p) for n, p in policy.parameters.items())
    assert moments.steps == 0
    assert not any(bool(value.any()) for value in moments.tensors().values())


def test_checkpointing_changes_no_gradient(policy: Policy) -> None:
    perturb(policy)
    spec, batch = loss_spec("ppo", None), data()
    gradients.add_loss(policy, batch, spec, 1.0, 3)
    kept = taken(policy)
    policy.checkpointing = True
    assert policy.checkpointing
    gradients.add_loss(policy, batch, spec, 1.0, 3)
    policy.checkpointing = False
    assert not policy.checkpointing
    assert difference(taken(policy), kept) == 0.0
