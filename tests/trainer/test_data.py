"""Trajectories to datums: advantages, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from espalier.api.wire.gradients import ForwardBackwardRequest
from espalier.trainer.batch.data import datums
from espalier.trainer.batch.limits import Limits
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
        ({"group_size": 2, "advantage_estimator": "LeaveOneOut"}, [1.0, -1.0, 4.0, -4.0]),
        ({"group_size": 2, "advantage_estimator": "None"}, [1.0, 0.0, 5.0, 1.0]),
        ({"group_size": 1}, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_advantages(changes: dict[str, Any], expected: list[float]) -> None:
    assert advantages(request(*REWARDS, **changes)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("GroupStd", [1, -1, 1, -1]), ("BatchStd", [0.26038, -0.26038, 1.04151, -1.04151])],
)
def test_advantages_are_scaled_by_the_spread_of_their_group_or_of_the_request(
    scale: str, expected: list[float]
) -> None:
    found = advantages(request(*REWARDS, group_size=2, advantage_scale=scale))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"group_size": 1, "advantage_estimator": "LeaveOneOut"}, "compares with the others"),
        ({"advantage_estimator": "None", "advantage_scale": "GroupStd"}, "estimator None takes no"),
    ],
)
def test_what_has_no_advantage_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CommandError, match=says) as refused:
        advantages(request(*REWARDS, **changes))
    assert refused.value.status == 422


@pytest.mark.parametrize("field", ["advantage_estimator", "advantage_scale"])
def test_an_estimator_is_refused_where_nothing_is_estimated(field: str) -> None:
    value = {"advantage_estimator": "LeaveOneOut", "advantage_scale": "BatchStd"}[field]
    given = [trajectory(1.0, advantage=0.3), trajectory(0.0, advantage=-0.1)]
    for inputs in (given, [sample(advantages=[1.0]), sample(advantages=[-1.0])]):
        with pytest.raises(CommandError, match=f"{field}: is {value}, and inputs bring their own"):
            advantages(request(*inputs, group_size=2, **{field: value}))


def test_a_masked_sample_keeps_its_place_in_the_mean_of_its_group() -> None:
    masked = [sample(masked=True) | {"reward": 3.0}, sample(), sample()]
    data = datums(request(*masked, group_size=3), LIMITS, policies_compared=True)
    assert [(d.masked, d.advantage) for d in data] == [(True, 2.0), (False, -1.0), (False, -1.0)]


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
def test_a_field_that_does_not_fit_is_named_with_a_remedy(
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


def temperatures(*inputs: Any, compared: bool = True, **changes: Any) -> list[tuple[float, bool]]:
    data = datums(request(*inputs, **changes), LIMITS, policies_compared=compared)
    return [(datum.temperature, datum.assumed) for datum in data]


def chunk(**changes: Any) -> dict[str, Any]:
    """How HUD's client sends back what the gateway's answer said."""
    return {"prompt_chunks": [{"type": "sampling", "temperature": 0.7, "shifted_by": []} | changes]}


@pytest.mark.parametrize(
    ("inputs", "changes", "expected"),
    [
        ([sample(temperature=0.7), sample(temperature=1.3)], {}, [(0.7, False), (1.3, False)]),
        ([sample(temperature=0.7), sample()], {"temperature": 0.7}, [(0.7, False)] * 2),
        ([sample(), sample()], {"temperature": 0.5}, [(0.5, False)] * 2),
        ([sample(**chunk())], {}, [(0.7, False)]),
        # HUD's wire says nothing, and means 1.
        ([sample()], {}, [(1.0, True)]),
    ],
)
def test_each_sample_is_trained_at_the_temperature_that_it_was_drawn_at(
    inputs: list[Any], changes: dict[str, Any], expected: list[tuple[float, bool]]
) -> None:
    assert temperatures(*inputs, **changes) == expected


@pytest.mark.parametrize(
    ("inputs", "changes", "reason", "said"),
    [
        (
            [sample(temperature=0.7)],
            {"temperature": 1.0},
            "TemperatureContradicted",
            "inputs[0].samples[0].temperature is 0.7, and the request's temperature is 1",
        ),
        ([sample(temperature=0)], {}, "SampledGreedily", "inputs[0].samples[0].temperature is 0"),
        (
            [sample(), sample(temperature=0.7, shifted_by=["top_p 0.8", "min_p 0.1"])],
            {},
            "DistributionShifted",
            "inputs[1].samples[0]: it was sampled with top_p 0.8, min_p 0.1",
        ),
        ([sample(**chunk(shifted_by=["top_k 5"]))], {}, "DistributionShifted", "top_k 5"),
    ],
)
def test_log_probs_of_another_distribution_are_refused_with_the_reason(
    inputs: list[Any], changes: dict[str, Any], reason: str, said: str
) -> None:
    with pytest.raises(CommandError) as caught:
        datums(request(*inputs, **changes), LIMITS, policies_compared=True)
    assert (caught.value.status, caught.value.problem.reason) == (422, reason)
    assert said in caught.value.problem.detail
    assert caught.value.problem.remedy


def test_a_loss_that_reads_no_log_probs_trains_on_samples_however_drawn() -> None:
    shifted = sample(temperature=0.7, shifted_by=["top_p 0.8"])
    assert temperatures(shifted, compared=False) == [(0.7, False)]
    # The policy has no distribution at 0: the request's temperature, or 1.
    greedy = sample(temperature=0)
    assert temperatures(greedy, compared=False) == [(1.0, True)]
    assert temperatures(greedy, compared=False, temperature=0.5) == [(0.5, False)]


def test_the_temperatures_of_gateway_and_sample_must_agree() -> None:
    with pytest.raises(ValidationError, match=r"temperature is 1.0, and prompt_chunks\[0\] says"):
        request(sample(temperature=1.0, **chunk()))
    with pytest.raises(ValidationError, match=r"prompt_chunks\[0\].top_p is unknown"):
        request(sample(**chunk(top_p=0.8)))
