"""A masked sample is in no loss and in no count; its reward stays in the mean of its group."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.trainer import tiny
from torch import Tensor

from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardRequest,
    ForwardResult,
)
from espalier.trainer.batch.step_metrics import checkpoint_metrics
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.problems import CommandError

REWARDS = [1.0, 0.0, 2.0]


def inputs(*masked: int, **changes: Any) -> list[dict[str, Any]]:
    """One group of three answers with REWARDS; those of these indices are masked."""
    found = []
    for index, one in enumerate(tiny.trajectories(groups=1, size=3)):
        plain = one.model_dump(exclude_unset=True) | {"reward": REWARDS[index]}
        plain["samples"][0]["masked"] = index in masked
        found.append(plain | changes)
    return found


def batch(given: list[dict[str, Any]], **changes: Any) -> ForwardBackwardRequest:
    return ForwardBackwardRequest.model_validate({"inputs": given, "group_size": 3} | changes)


def gradients(engine: Engine) -> dict[str, Tensor]:
    assert isinstance(engine.state.compute, LocalCompute)
    policy = engine.state.compute.policy
    return {n: p.grad.clone() for n, p in policy.parameters.items() if p.grad is not None}


def accumulated(engine: Engine, request: ForwardBackwardRequest, seq: int) -> dict[str, Tensor]:
    engine.state.drop_gradients()
    tiny.send(engine, "forward-backward", request, ("s", seq))
    return gradients(engine)


def test_the_others_are_trained_as_if_it_were_not_there_at_the_same_advantages(
    engine: Engine,
) -> None:
    masked = accumulated(engine, batch(inputs(1)), 0)
    # The mean of all three rewards is 1, so the trained two have advantages 0 and 1.
    others = [dict(i, advantage=i["reward"] - 1.0) for i in inputs() if i["reward"] != 0.0]
    alone = accumulated(engine, batch(others, group_size=2), 1)
    assert masked.keys() == alone.keys()
    assert all(torch.equal(masked[name], alone[name]) for name in masked)


def test_its_tokens_are_not_counted_and_its_reward_is(engine: Engine) -> None:
    given = inputs(1)
    answer = json.loads(tiny.send(engine, "forward-backward", batch(given), ("s", 0)).body)
    kept = sum(len(given[index]["samples"][0]["output_token_ids"]) for index in (0, 2))
    assert (answer["metrics"]["tokens:sum"], answer["num_datums"]) == (kept, 2)
    (tally,) = engine.state.tallies
    assert checkpoint_metrics(tally)["rollout/reward/mean"] == 1.0
    assert tally.rewards == tuple(REWARDS)


def test_a_batch_of_masked_samples_alone_is_refused(engine: Engine) -> None:
    with pytest.raises(CommandError, match="every sample is masked") as refused:
        tiny.send(engine, "forward-backward", batch(inputs(0, 1, 2)), ("s", 0))
    assert refused.value.status == 422
    assert engine.state.report().pending == 0


def test_a_custom_loss_has_a_mask_and_may_not_train_what_it_masks(engine: Engine) -> None:
    request = ForwardRequest.model_validate({"inputs": inputs(1), "group_size": 3})
    answer = ForwardResult.model_validate_json(tiny.send(engine, "forward", request, ("s", 0)).body)
    assert [set(datum.mask) for datum in answer.data] == [{1.0}, {0.0}, {1.0}]
    ones = [[1.0] * len(datum.mask) for datum in answer.data]
    wrong = BackwardRequest(forward_id=answer.forward_id, weights=ones)
    with pytest.raises(CommandError, match=r"weights\[1\]: is not 0 everywhere"):
        tiny.send(engine, "backward", wrong, ("s", 1))
    right = wrong.model_copy(update={"weights": [ones[0], [0.0] * len(ones[1]), ones[2]]})
    tiny.send(engine, "backward", right, ("s", 2))
    (tally,) = engine.state.tallies
    assert (tally.tokens, tally.zero_gradient) == (len(ones[0]) + len(ones[2]), 0)


def test_after_a_crash_the_same_is_accumulated(engine: Engine, tmp_path: Any) -> None:
    before = accumulated(engine, batch(inputs(2)), 0)
    engine.state.log.close()
    again = tiny.engine(tmp_path, engine.state.base)
    after = gradients(again)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.state.tallies[0].rewards == tuple(REWARDS)
    again.state.log.close()
