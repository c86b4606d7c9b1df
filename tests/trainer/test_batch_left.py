"""What is left of a batch: kept with a step's checkpoint, given back while the run stands on it."""

from __future__ import annotations

import pytest
import torch
from tests.trainer import tiny
from tests.trainer.test_gradients import difference, perturb, taken
from tests.trainer.tiny import Volume

from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.trainer.batch.data import datums
from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy


def payloads() -> list[TrajectoryPayload]:
    return [p for p in tiny.forward_backward().inputs if isinstance(p, TrajectoryPayload)]


def left() -> BatchLeft:
    return BatchLeft(parts=[[], payloads()], epochs=1, next=1, metrics={"rollout/reward/mean": 0.5})


def step(engine: Engine, batch: BatchLeft | None, seq: int = 0) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", seq))
    tiny.send(engine, "optim-step", tiny.optim_step(batch=batch), ("s", seq + 1))


def test_what_is_left_is_given_back_until_the_next_step_and_over_a_restart(
    volume: Volume, policy: Policy
) -> None:
    engine = tiny.engine(volume.path, volume.base, policy)
    engine.assign(tiny.assignment())
    assert engine.state.batch_left() is None
    step(engine, left())
    assert engine.state.batch_left() == left()
    engine.state.log.close()
    engine = tiny.engine(volume.path, volume.base, policy)
    assert engine.state.batch_left() == left()
    step(engine, None, seq=2)
    assert engine.state.batch_left() is None
    engine.state.log.close()


def test_a_rollback_and_another_run_have_nothing_left(engine: Engine) -> None:
    step(engine, left())
    digest = engine.state.position.digest
    engine.assign(tiny.assignment(1, run="default/second"))
    assert engine.state.batch_left() is None
    engine.assign(tiny.assignment(1))
    assert engine.state.batch_left() == left()
    # Back to the very same checkpoint, but under another term.
    engine.assign(tiny.assignment(2, base=digest))
    assert engine.state.batch_left() is None


@pytest.mark.parametrize("loss", ["ppo", "importance_sampling"])
def test_a_later_step_has_the_ratio_to_the_policy_that_first_saw_the_batch(
    engine: Engine, policy: Policy, loss: str
) -> None:
    """Against the loss by hand in float64, of log-probs before and after the policy moved."""
    compute = engine.state.compute
    plain = tiny.forward_backward(loss_fn=loss, ratio_anchor="Trainer")
    data = datums(plain, policy.limits, policies_compared=True)
    first = compute.score(compute.admit(data))
    perturb(policy)
    now, weights = compute.score(compute.admit(data)), []
    for datum, before, row in zip(data, first, now, strict=True):
        lp = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        ratio = (lp - torch.tensor(before, dtype=torch.float64)).exp()
        surrogate = ratio * datum.advantage
        if loss == "ppo":
            surrogate = torch.minimum(surrogate, ratio.clamp(0.8, 1.2) * datum.advantage)
        (-surrogate.sum()).backward()
        assert lp.grad is not None
        weights.append((-lp.grad).tolist())
    compute.add_weights(compute.admit(data), weights, given={}, group_size=3)
    by_hand = taken(policy)
    policy.drop_gradients()
    rows = iter(first)
    anchored = [
        payload.model_copy(
            update={
                "samples": [
                    sample.model_copy(update={"anchor_logprobs": next(rows)})
                    for sample in payload.samples
                ]
            }
        )
        for payload in payloads()
    ]
    request = plain.model_copy(update={"inputs": anchored})
    tiny.send(engine, "forward-backward", request, ("s", 0))
    assert difference(taken(policy), by_hand) < 1e-4
