"""The bonus for entropy: exact, and differentiated through the whole softmax."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from tests.trainer import tiny
from tests.trainer.test_gradients import difference, perturb, rms_norm, taken
from torch import Tensor
from transformers.models.llama import modeling_llama

from espalier.trainer.batch.data import datums
from espalier.trainer.batch.objective import call_spec
from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy import frozen_lm_head, trained_lm_head
from espalier.trainer.policy.frozen_lm_head import Evaluated
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import Problem

HEADS = {"frozen": frozen_lm_head.evaluate, "trained": trained_lm_head.evaluate}


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_a_head_differentiates_entropy_as_the_softmax_of_all_logits(
    monkeypatch: pytest.MonkeyPatch,
    head: Callable[..., Evaluated],
    with_bias: bool,
    temperature: float,
) -> None:
    monkeypatch.setitem(frozen_lm_head.CHUNK_ELEMENTS, "cpu", 3 * 40)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    trained = head is trained_lm_head.evaluate
    hidden, weight = drawn(10, 8).requires_grad_(), drawn(40, 8).requires_grad_(trained)
    bias = drawn(40).requires_grad_(trained) if with_bias else None
    targets = torch.randint(0, 40, (10,), generator=generator)
    by_logprob, by_entropy = drawn(10), drawn(10)
    leaves = [one for one in (hidden, weight, bias) if one is not None and one.requires_grad]

    made = head(hidden, weight, bias, targets, temperature, True)
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    expected = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(made.entropy, expected.entropy(), rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad([made.logprobs, made.entropy], leaves, [by_logprob, by_entropy])
    theirs = torch.autograd.grad(
        [expected.log_prob(targets), expected.entropy()], leaves, [by_logprob, by_entropy]
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("path", ["fast", "padded"])
@pytest.mark.parametrize("loss", ["ppo", "cross_entropy"])
def test_the_gradient_is_that_of_the_whole_loss_in_float64(
    monkeypatch: pytest.MonkeyPatch, loss: str, path: str
) -> None:
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", rms_norm)
    policy = Policy(tiny.causal_lm().double(), tiny.ADAPTER, torch.device("cpu"))
    policy.causal_lm.double()
    perturb(policy)
    if path == "padded":
        policy.warning = Problem(detail="as if unknown", reason="SlowPath")
    spec = call_spec(tiny.forward_backward(loss_fn=loss, entropy_coefficient=0.3))
    batch = tiny.at(0.7, datums(tiny.forward_backward(), policy.limits, policies_compared=True))
    tally = tiny.add_loss(policy, batch, spec, 0.7, 3)
    ours = taken(policy)

    whole, bonus = [], []
    for datum in batch:
        ids = torch.tensor([datum.prompt + datum.output])
        logits = policy.causal_lm(input_ids=ids, use_cache=False).logits[0]
        start = len(datum.prompt) - 1
        chances = torch.distributions.Categorical(
            logits=logits[start : start + len(datum.output)] / 0.7
        )
        lp = chances.log_prob(torch.tensor(datum.output))
        ratio = (lp - torch.tensor(datum.sampling_logprobs, dtype=torch.float64)).exp()
        surrogate = torch.minimum(ratio * datum.advantage, ratio.clamp(0.8, 1.2) * datum.advantage)
        whole.append(-(surrogate if loss == "ppo" else lp).sum())
        bonus.append(0.3 * chances.entropy().sum())
    total = torch.stack(whole).sum() - torch.stack(bonus).sum()
    total.backward()
    assert difference(ours, taken(policy)) < 1e-10
    assert tally.loss == pytest.approx(total.item(), rel=1e-10)


def test_a_group_without_advantages_still_learns_to_be_uncertain(engine: Engine) -> None:
    equal = [one.model_copy(update={"reward": 1.0}) for one in tiny.trajectories(groups=1)]
    request = tiny.forward_backward(inputs=equal, entropy_coefficient=0.1)
    told = json.loads(tiny.send(engine, "forward-backward", request, ("s", 0)).body)["metrics"]
    assert told["zero_gradient:mean"] == 0
    assert tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1)).status == 200
    after = json.loads(tiny.send(engine, "forward-backward", request, ("s", 2)).body)["metrics"]
    assert after["entropy:mean"] > told["entropy:mean"]


def test_without_a_bonus_entropy_is_a_figure_and_no_more(policy: Policy) -> None:
    batch = datums(tiny.forward_backward(), policy.limits, policies_compared=True)
    (row,) = tiny.laid(policy, batch).with_grad
    assert not policy.evaluate(row).entropy.requires_grad
    assert policy.evaluate(row, by_entropy=True).entropy.requires_grad


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_a_head_of_narrow_weights_differentiates_entropy_as_well(
    head: Callable[..., Evaluated],
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(*shape, generator=generator).bfloat16().requires_grad_()
        for shape in ((10, 8), (40, 8))
    )
    weight.requires_grad_(head is trained_lm_head.evaluate)
    targets = torch.randint(0, 40, (10,), generator=generator)
    made = head(hidden, weight, None, targets, 0.7, True)
    (ours,) = torch.autograd.grad(made.entropy.sum(), hidden)
    wide = hidden.detach().float().requires_grad_()
    logits = torch.nn.functional.linear(wide, weight.detach().float()) / 0.7
    expected = torch.distributions.Categorical(logits=logits).entropy()
    (theirs,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(made.entropy, expected, rtol=1e-5, atol=1e-5)
    assert float((ours.float() - theirs).norm() / theirs.norm()) < 0.01
