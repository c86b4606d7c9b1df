"""Tinker's datums: log-probs of every position, its losses exactly, the same gradients as ours."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from tests.tinker.messages import Explicit
from tests.trainer import tinker, tiny
from tests.trainer.test_losses import GOLDEN
from torch import Tensor

from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.tinker.datums import read_batch
from espalier.trainer.batch import explicit
from espalier.trainer.batch.data import datums
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.batch.objective import token_loss
from espalier.trainer.batch.step_metrics import answer_metrics
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.explicit_command import explicit_command
from espalier.trainer.policy.policy import Policy

LP = [-0.5, -1.0, -2.0, -0.1, -3.0, -0.2]
VALUES = {
    "logprobs": [-0.6, -0.7, -2.0, -0.5, -1.0, -0.9],
    "advantages": [0, -1, 1, -2, 0.5, 1.5],
    "weights": [0, 1, 1, 0.5, 1, 1],
    "sequence_ratio_mask": [0, 1, 1, 1, 1, 1],
}
INPUTS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("weights",),
    "gspo": ("logprobs", "advantages", "sequence_ratio_mask"),
}
POLICY = ("logprobs", "advantages")


def reference(name: str, config: dict[str, float], lp: Tensor, v: dict[str, Tensor]) -> Tensor:
    """The published formula in float64, as one expression for autograd."""
    if name == "cross_entropy":
        return -(v["weights"] * lp).sum()
    q, a = v["logprobs"], v["advantages"]
    low, high = config.get("clip_low_threshold", 0.0), config.get("clip_high_threshold", 0.0)
    ratio = (lp - q).exp()
    if name == "importance_sampling":
        return -(ratio * a).sum()
    if name == "ppo":
        return -torch.minimum(ratio * a, ratio.clamp(low, high) * a).sum()
    if name == "cispo":
        return -(ratio.clamp(low, high).detach() * lp * a).sum()
    if name == "dro":
        return -(lp * a - 0.5 * config["beta"] * (lp - q) ** 2).sum()
    mask = v["sequence_ratio_mask"]
    mean = ((lp.detach() - q) * mask).sum() / mask.sum()
    # Grouped so that the difference, which is zero, rounds nothing away.
    ratio = (mean + (lp - lp.detach())).exp()
    return -torch.minimum(ratio * a, ratio.clamp(low, high) * a).sum()


@pytest.mark.parametrize(("name", "config", "loss", "gradient"), GOLDEN)
def test_a_message_has_the_loss_and_gradient_of_the_published_formula_bit_for_bit(
    name: str, config: dict[str, float], loss: float, gradient: list[float]
) -> None:
    wanted = INPUTS.get(name, POLICY)
    one = Explicit(range(6), range(1, 7), {key: VALUES[key] for key in wanted})
    body = tinker.forward_backward(1, [tinker.datum(one)], name, **config)
    spec, data = loss_spec(name, config), explicit.datums(read_batch(body))
    lp = torch.tensor(LP, dtype=torch.float64)
    found = token_loss(spec, explicit.call_tokens(data, lp))

    # What the wire carries: float32.
    sent = {key: torch.tensor(VALUES[key], dtype=torch.float32).double() for key in wanted}
    leaf = lp.clone().requires_grad_()
    expected = reference(name, dict(spec.config), leaf, sent)
    expected.backward()
    assert found.loss == expected.item()
    assert leaf.grad is not None
    assert found.gradient.tolist() == leaf.grad.tolist()
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert found.gradient.tolist() == pytest.approx(gradient, abs=1e-6)


def test_log_probs_of_all_positions_come_back_for_the_targets_that_were_asked(
    engine: Engine, policy: Policy
) -> None:
    generator = random.Random(3)
    tokens = [[generator.randrange(256) for _ in range(n)] for n in (1, 5, 9, 9)]
    # The last two share a prefix, and no target continues its sequence.
    tokens[3][:4] = tokens[2][:4]
    targets = [[generator.randrange(256) for _ in one] for one in tokens]
    data = [
        tinker.datum(Explicit(x, y, {"weights": [1.0] * len(x)}))
        for x, y in zip(tokens, targets, strict=True)
    ]
    for seq, forward_only in ((1, True), (2, False)):
        body = tinker.forward_backward(seq, data, "cross_entropy", forward_only=forward_only)
        tinker.accept(engine, seq, "tinker-forward-backward", body)
    tinker.work(engine)
    expected = [reference_logprobs(x, y) for x, y in zip(tokens, targets, strict=True)]
    for seq in (1, 2):
        output = tinker.output(engine, seq)
        found = tinker.logprobs(output)
        assert [len(one) for one in found] == [1, 5, 9, 9]
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
        total = -math.fsum(math.fsum(one) for one in found)
        assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-6)
        assert output.metrics["tokens:sum"] == 24
    assert engine.state.report().pending == 1


def reference_logprobs(tokens: list[int], targets: list[int]) -> list[float]:
    """Of the bare model, padded to nothing and packed with nothing: the adapter is fresh."""
    with torch.no_grad():
        logits = tiny.causal_lm()(torch.tensor([tokens])).logits[0].float()
    chosen: list[float] = logits.log_softmax(-1)[range(len(targets)), targets].tolist()
    return chosen


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "cross_entropy", "gspo"])
def test_the_gradient_is_that_of_the_same_batch_of_trajectories(policy: Policy, loss: str) -> None:
    generator = random.Random(1)
    compute = LocalCompute(policy)
    sent, inputs = [], []
    for _ in range(4):
        one = tinker.rollout(generator)
        count = sum(q != 0 for q in one.inputs["logprobs"])
        before = len(one.tokens) - count
        values: dict[str, Any] = dict(one.inputs)
        if loss in ("cross_entropy", "gspo"):
            values[INPUTS[loss][-1]] = [0.0] * before + [1.0] * count
        kept = {name: values[name] for name in INPUTS.get(loss, POLICY)}
        sent.append(tinker.datum(Explicit(one.tokens, one.targets, kept)))
        sample: dict[str, Any] = {
            "prompt_token_ids": one.tokens[: before + 1],
            "output_token_ids": one.targets[before:],
            "output_logprobs": one.inputs["logprobs"][before:],
        }
        if loss != "cross_entropy":
            sample["advantages"] = one.inputs["advantages"][before:]
        inputs.append(TrajectoryPayload(samples=[TrajectorySample(**sample)], reward=0.0))
    command = explicit_command(compute, tinker.forward_backward(1, sent, loss))
    added = command.run(compute)
    found = gradients(policy)
    policy.drop_gradients()
    request = tiny.forward_backward(inputs=inputs, group_size=None)
    spec = loss_spec(loss, None)
    data = datums(request, compute.limits, policies_compared=spec.compares_policies, weighted=True)
    expected = compute.add_loss(compute.admit(data, spec), spec, None)
    for name, gradient in gradients(policy).items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
    assert added.tally.loss == pytest.approx(expected.tally.loss, rel=1e-5)
    # Prompt positions are in no metric.
    assert added.tally.tokens == expected.tally.tokens
    if spec.compares_policies:
        mine, theirs = answer_metrics(added.tally), answer_metrics(expected.tally)
        for metric in ("ratio:mean", "mismatch_kl:mean", "clipped:mean", "entropy:mean"):
            assert mine[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-7)


def gradients(policy: Policy) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in policy.parameters.items() if p.grad is not None}
