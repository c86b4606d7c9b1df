"""Trajectories to datums: advantages, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.api.wire import ForwardBackwardRequest
from espalier.trainer.data import Limits, datums
from espalier.trainer.problems import CommandError

LIMITS = Limits(vocabulary=256, context=16)


def trajectory(reward: float, samples: int = 1, **changes: Any) -> dict[str, Any]:
    sample = {"prompt_token_ids": [1, 2], "output_token_ids": [3], "output_logprobs": [-0.5]}
    return {"samples": [sample] * samples, "reward": reward} | changes


def request(*inputs: Any, **changes: Any) -> ForwardBackwardRequest:
    return ForwardBackwardRequest.model_validate({"inputs": list(inputs)} | changes)


def advantages(wanted: ForwardBackwardRequest) -> list[float]:
    return [datum.advantage for datum in datums(wanted, LIMITS, policies_compared=True)]


REWARDS = [trajectory(reward) for reward in (1.0, 0.0, 5.0, 1.0)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Without groups all are one, as HUD documents it.
        ({}, [-0.75, -1.75, 3.25, -0.75]),
        ({"reward_scale": 2.0}, [-1.5, -3.5, 6.5, -1.5]),
        ({"group_size": 2}, [0.5, -0.5, 2.0, -2.0]),
        ({"group_size": 4}, [-0.75, -1.75, 3.25, -0.75]),
        ({"group_size": 2, "reward_scale": 10.0}, [5.0, -5.0, 20.0, -20.0]),
        ({"group_size": 2, "advantage_scale": "GroupStd"}, [1.0, -1.0, 1.0, -1.0]),
        ({"group_size": 1}, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_advantages(changes: dict[str, Any], expected: list[float]) -> None:
    assert advantages(request(*REWARDS, **changes)) == pytest.approx(expected)


def test_a_group_of_equal_rewards_has_no_advantage_even_when_scaled() -> None:
    equal = [trajectory(0.1), trajectory(0.1), trajectory(0.1)]
    assert advantages(request(*equal, group_size=3, advantage_scale="GroupStd")) == [0, 0, 0]


def test_precomputed_advantages_win() -> None:
    given = [trajectory(1.0, advantage=0.3), trajectory(0.0, advantage=-0.1)]
    assert advantages(request(*given, group_size=2, reward_scale=7.0)) == [0.3, -0.1]


def test_every_turn_of_a_trajectory_shares_its_advantage() -> None:
    data = datums(
        request(trajectory(1.0, samples=3), trajectory(0.0), group_size=2),
        LIMITS,
        policies_compared=True,
    )
    assert [(d.trajectory, d.group, d.advantage) for d in data] == [(0, 0, 0.5)] * 3 + [
        (1, 0, -0.5)
    ]


def sample(**changes: Any) -> dict[str, Any]:
    base = {"prompt_token_ids": [1, 2], "output_token_ids": [3], "output_logprobs": [-0.5]}
    return {"samples": [base | changes], "reward": 0.0}


@pytest.mark.parametrize(
    ("inputs", "changes", "field", "remedy"),
    [
        (["trace-1"], {}, "inputs[0]", "inline"),
        (REWARDS[:3], {"group_size": 2}, "group_size", "whole groups"),
        ([sample(output_logprobs=[])], {}, "inputs[0].samples[0].output_logprobs", "logprobs"),
        ([sample(output_logprobs=[-1, -1])], {}, "output_logprobs", "every output token"),
        ([sample(output_token_ids=[], output_logprobs=[])], {}, "output_token_ids", "leave out"),
        ([sample(prompt_token_ids=[])], {}, "prompt_token_ids", "prompt's tokens"),
        ([sample(prompt_token_ids=None)], {}, "prompt_token_ids", "prompt's tokens"),
        ([sample(prompt_chunks=[{}])], {}, "prompt_chunks", "prompt_token_ids"),
        ([sample(output_token_ids=[256])], {}, "inputs[0].samples[0]", "tokenizer"),
        ([sample(prompt_token_ids=[-1])], {}, "inputs[0].samples[0]", "tokenizer"),
        ([sample(prompt_token_ids=[1] * 16)], {}, "context of 16", "maxTokens"),
        (
            [trajectory(1.0, advantage=1.0), trajectory(0.0)],
            {"group_size": 2},
            "inputs[1].advantage",
            "or none",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_a_remedy(
    inputs: list[Any], changes: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(CommandError) as caught:
        datums(request(*inputs, **changes), LIMITS, policies_compared=True)
    assert caught.value.status == 422
    assert field in caught.value.problem.detail
    assert remedy in caught.value.problem.remedy


def test_cross_entropy_needs_no_sampler() -> None:
    (datum,) = datums(request(sample(output_logprobs=[])), LIMITS, policies_compared=False)
    assert datum.output == (3,)
