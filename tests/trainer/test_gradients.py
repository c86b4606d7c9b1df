"""Packed rows against the padded, full-logits way of computing the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.trainer import tiny
from torch import Tensor
from transformers.models.llama import modeling_llama

from espalier.api.wire.gradients import ForwardRequest
from espalier.trainer.batch.data import Datum, datums
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.losses import DEFAULTS, loss_spec
from espalier.trainer.batch.step_metrics import checkpoint_metrics
from espalier.trainer.batch.tally import total
from espalier.trainer.compute import gradients
from espalier.trainer.compute.adamw import fresh_moments, propose
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.policy.policy import Policy


def rms_norm(self: modeling_llama.LlamaRMSNorm, hidden: Tensor) -> Tensor:
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[Policy]:
    """The tiny policy in float64; its RMSNorm would otherwise compute in float32."""
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", rms_norm)
    made = Policy(tiny.causal_lm().double(), tiny.ADAPTER, torch.device("cpu"))
    made.causal_lm.double()
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


def naive_loss(name: str, lp: Tensor, q: Tensor, a: Tensor, w: Tensor) -> Tensor:
    """The published formula of one sequence, for autograd: nothing in closed form."""
    ratio = (lp - q).exp()
    if name == "gspo":
        trained = w != 0
        ratio = ((lp.detach() - q)[trained].mean() + lp - lp.detach()).exp()
    low, high = {"cispo": (0.0, 4.0)}.get(name, (0.8, 1.2))
    pessimistic = -torch.minimum(ratio * a, ratio.clamp(low, high) * a).sum()
    return {
        "cross_entropy": -(w * lp).sum(),
        "importance_sampling": -(ratio * a).sum(),
        "ppo": pessimistic,
        "gspo": pessimistic,
        "cispo": -(ratio.clamp(low, high).detach() * a * lp).sum(),
        "dro": -(lp * a - 0.5 * 0.05 * (lp - q) ** 2).sum(),
    }[name]


def naive_gradient(
    policy: Policy, batch: list[Datum], loss: str, temperature: float
) -> dict[str, Tensor]:
    policy.drop_gradients()
    whole = []
    for lp, datum in zip(padded_logprobs(policy, batch, temperature), batch, strict=True):
        q, a, w = (
            torch.tensor(v, dtype=lp.dtype)
            for v in (datum.sampling_logprobs, datum.advantages, datum.weights)
        )
        whole.append(naive_loss(loss, lp, q, a, w))
    torch.stack(whole).sum().backward()
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
    tiny.add_loss(wide, batch, loss_spec(loss, None), temperature, 3)
    assert difference(taken(wide), naive_gradient(wide, batch, loss, temperature)) < 1e-12


def with_token_values(batch: list[Datum]) -> list[Datum]:
    """Values of either sign and zeros, one per token, near enough to the policy to stay unclipped
    in places and clipped in others."""
    generator = np.random.default_rng(5)
    return [
        replace(
            datum,
            token_advantages=tuple(generator.normal(size=len(datum.output)).tolist()),
            token_weights=tuple(
                (generator.normal(size=len(datum.output)) * (index != 1)).tolist()
                if index != 2
                else [0.0] * (len(datum.output) - 1) + [-2.0]
            ),
            sampling_logprobs=tuple(
                (np.array(datum.sampling_logprobs) * generator.uniform(0.9, 1.1)).tolist()
            ),
        )
        for index, datum in enumerate(batch)
        if index != 1
    ]


@pytest.mark.parametrize("loss", list(DEFAULTS))
def test_values_per_token_of_any_sign_are_exact(wide: Policy, loss: str) -> None:
    batch = with_token_values(data())
    wide.row_tokens = 20
    tiny.add_loss(wide, batch, loss_spec(loss, None), 1.0, None)
    assert difference(taken(wide), naive_gradient(wide, batch, loss, 1.0)) < 1e-12


def test_groups_without_gradient_share_rows_and_run_forward_only(wide: Policy) -> None:
    batch = [replace(d, advantage=d.advantage * (d.group == 1)) for d in data()]
    spec = loss_spec("ppo", None)
    tally = tiny.add_loss(wide, batch, spec, 1.0, 3)
    packed = taken(wide)
    assert difference(packed, naive_gradient(wide, batch, "ppo", 1.0)) < 1e-12
    assert tally.tokens == sum(len(d.output) for d in batch)
    assert tally.zero_gradient >= sum(len(d.output) for d in batch if d.group == 0)
    still = [replace(d, advantage=0.0) for d in batch]
    assert tiny.add_loss(wide, still, spec, 1.0, 3).tokens == tally.tokens
    assert all(parameter.grad is None for parameter in wide.parameters.values())


def test_samples_of_two_temperatures_in_one_call_have_each_their_own_gradient(
    wide: Policy,
) -> None:
    batch, spec = data(), loss_spec("ppo", None)
    halves = tiny.at(0.7, batch[::2]), tiny.at(1.3, batch[1::2])
    mixed = [datum for pair in zip(*halves, strict=True) for datum in pair]
    rows = tiny.laid(wide, mixed, spec)
    gradients.add_loss(wide, rows, spec, 3)
    together = taken(wide)
    for half, temperature in zip(halves, (0.7, 1.3), strict=True):
        tiny.add_loss(wide, half, spec, temperature, 3)
    assert difference(together, taken(wide)) < 1e-12


def custom(compute: LocalCompute, batch: list[Datum], between: str) -> dict[str, Tensor]:
    batch = tiny.at(0.7, batch)
    compute.score(compute.admit(batch), keep="forward-1")
    if between == "load":
        compute.take({n: p.detach().clone() for n, p in compute.policy.parameters.items()})
    if between == "drop":
        compute.drop_gradients()
    if between == "forward":
        compute.score(compute.admit(batch[:1]), keep="forward-2")
    if between == "nothing":
        compute._kept = None
    weights = [[float(1 + i - 2 * t) for t in range(len(d.output))] for i, d in enumerate(batch)]
    compute.add_weights(compute.admit(batch), weights, given={}, group_size=3, forward="forward-1")
    assert compute._kept is None
    return taken(compute.policy)


@pytest.mark.parametrize("between", ["load", "drop", "forward", "nothing"])
def test_a_backward_is_bit_for_bit_the_same_from_its_forwards_graph(
    policy: Policy, between: str
) -> None:
    perturb(policy)
    compute, batch = LocalCompute(policy), data()
    policy.row_tokens, before = 20, policy.row_tokens
    try:
        cached, again = custom(compute, batch, ""), custom(compute, batch, between)
    finally:
        policy.row_tokens = before
    assert cached.keys() == again.keys()
    assert all(torch.equal(cached[name], again[name]) for name in cached)


def test_a_backward_right_after_its_forward_needs_no_second_forward(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, batch = LocalCompute(policy), data()
    evaluate, rows = policy.evaluate, []
    monkeypatch.setattr(policy, "evaluate", lambda *a, **n: (rows.append(1), evaluate(*a, **n))[1])
    custom(compute, batch, "")
    kept = len(rows)
    # Room for the rows, and none for their graphs beside them.
    (plan,) = compute.admit(batch).plans
    compute.planner = replace(compute.planner, available=plan.needed)
    custom(compute, batch, "")
    assert len(rows) == 3 * kept


def test_gradients_and_logprobs_equal_the_padded_ones_in_float32(policy: Policy) -> None:
    perturb(policy)
    batch = data()
    scored = np.concatenate(tiny.score(policy, batch, 0.7))
    with torch.no_grad():
        naive = torch.cat(padded_logprobs(policy, batch, 0.7)).numpy()
    assert np.abs(scored - naive).max() < 1e-5
    tiny.add_loss(policy, batch, loss_spec("importance_sampling", None), 0.7, 3)
    assert (
        difference(taken(policy), naive_gradient(policy, batch, "importance_sampling", 0.7)) < 1e-5
    )


def test_one_call_equals_several(policy: Policy) -> None:
    perturb(policy)
    spec, whole = loss_spec("ppo", None), data()
    together = tiny.add_loss(policy, whole, spec, 1.0, 3)
    once = taken(policy)
    tallies = [tiny.add_loss(policy, whole[a:b], spec, 1.0, 3) for a, b in pairwise((0, 1, 4, 6))]
    assert difference(taken(policy), once) < 1e-5
    several = total(tallies)
    assert several.loss == pytest.approx(together.loss, rel=1e-5)
    assert (several.tokens, several.compared) == (together.tokens, together.compared)


def test_a_sample_does_not_see_its_neighbours(policy: Policy) -> None:
    batch = data()
    before = tiny.score(policy, batch, 1.0)
    changed = batch[0]
    other = Datum(
        changed.prompt, tuple((t + 1) % 256 for t in changed.output), changed.sampling_logprobs,
        0.0, 0.0, 0, 0,
    )  # fmt: skip
    after = tiny.score(policy, [other, *batch[1:]], 1.0)
    assert np.abs(np.concatenate(after[1:]) - np.concatenate(before[1:])).max() < 1e-5
    assert after[0][1:] != before[0][1:] or len(changed.output) == 1


def test_a_custom_loss_through_its_weights_equals_the_built_in(policy: Policy) -> None:
    perturb(policy)
    batch = data()
    tiny.add_loss(policy, batch, loss_spec("importance_sampling", None), 1.0, 3)
    built_in = taken(policy)
    weights = []
    for datum, logprobs in zip(batch, tiny.score(policy, batch, 1.0), strict=True):
        leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
        loss = -((leaf - torch.tensor(datum.sampling_logprobs)).exp() * datum.advantage).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        weights.append((-gradient).tolist())
    gradients.add_weights(policy, tiny.laid(policy, batch), weights, given={}, group_size=3)
    assert difference(taken(policy), built_in) < 1e-5


def test_the_tally_compares_trainer_and_sampler(policy: Policy) -> None:
    request = ForwardRequest(inputs=tiny.trajectories())
    batch = datums(request, policy.limits, policies_compared=True)
    tally = tiny.add_loss(policy, batch, loss_spec("dro", None), 1.0, None)
    d = np.concatenate(tiny.score(policy, batch, 1.0)) - np.concatenate(
        [datum.sampling_logprobs for datum in batch]
    )
    metrics = checkpoint_metrics(tally)
    assert metrics["logprob/difference_max"] == pytest.approx(np.abs(d).max(), rel=1e-4)
    assert metrics["logprob/difference_mean"] == pytest.approx(np.abs(d).mean(), rel=1e-4)
    assert metrics["policy/mismatch_kl"] == pytest.approx((np.exp(d) - 1 - d).mean(), rel=1e-3)
    assert metrics["rollout/reward/mean"] == pytest.approx(
        np.mean([t.reward for t in tiny.trajectories()])
    )


def test_a_step_is_adamw_with_the_values_of_the_call(policy: Policy) -> None:
    tiny.add_loss(policy, data(), loss_spec("importance_sampling", None), 1.0, 3)
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
    tiny.add_loss(policy, data(), loss_spec("importance_sampling", None), 1.0, 3)
    before = {n: p.detach().clone() for n, p in policy.parameters.items()}
    moments = fresh_moments(policy.parameters)
    propose(policy.parameters, moments, tiny.optim_step())
    assert all(torch.equal(before[n], p) for n, p in policy.parameters.items())
    assert moments.steps == 0
    assert not any(bool(value.any()) for value in moments.tensors().values())


def test_checkpointing_changes_no_gradient(policy: Policy) -> None:
    perturb(policy)
    spec, batch = loss_spec("ppo", None), data()
    tiny.add_loss(policy, batch, spec, 1.0, 3)
    kept = taken(policy)
    policy.checkpointing = True
    assert policy.checkpointing
    tiny.add_loss(policy, batch, spec, 1.0, 3)
    policy.checkpointing = False
    assert not policy.checkpointing
    assert difference(taken(policy), kept) == 0.0
