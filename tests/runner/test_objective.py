"""A run's spec as the fields of a forward-backward."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import run as run_of

from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire.gradients import ForwardBackwardRequest
from espalier.runner.objective import objective

SAMPLE = {"prompt_token_ids": [1], "output_token_ids": [2], "output_logprobs": [-1.0]}
INPUTS = [{"samples": [SAMPLE], "reward": 1.0}]


def spec(**given: Any) -> TrainingRunSpec:
    whole = run_of().spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return TrainingRunSpec.model_validate({**whole, **given})


GIVEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "loss": (
        {"loss": {"name": "ppo", "clipHigh": "1.3"}},
        {"loss_fn": "ppo", "loss_fn_config": {"clip_high_threshold": 1.3}},
    ),
    "level of the ratio": (
        {"loss": {"name": "cispo", "importanceLevel": "Sequence"}},
        {"importance_level": "Sequence"},
    ),
    "aggregation": (
        {"loss": {"name": "ppo", "aggregation": "Constant", "aggregationConstant": 64}},
        {"aggregation": "Constant", "aggregation_constant": 64},
    ),
    "correction": (
        {
            "loss": {"name": "ppo", "ratioAnchor": "Trainer"},
            "offPolicyCorrection": {"mode": "TokenTruncate", "maxRatio": "3"},
        },
        {
            "ratio_anchor": "Trainer",
            "correction": {"mode": "TokenTruncate", "max_ratio": 3.0, "min_ratio": None},
        },
    ),
    "entropy": (
        {"loss": {"name": "ppo", "entropyCoefficient": "1e-3"}},
        {"entropy_coefficient": 0.001},
    ),
    "penalty": (
        {"kl": {"coefficient": "0.02", "placement": "Loss", "reference": {"base": {}}}},
        {
            "kl": {
                **{"coefficient": 0.02, "placement": "Loss", "estimator": None},
                **{"discount": 0.0, "reference": "Base", "checkpoint": None},
            }
        },
    ),
    "advantage": (
        {"advantage": {"estimator": "LeaveOneOut", "scale": "BatchStd"}},
        {"advantage_estimator": "LeaveOneOut", "advantage_scale": "BatchStd"},
    ),
}


@pytest.mark.parametrize(("given", "sent"), GIVEN.values(), ids=GIVEN.keys())
def test_what_the_spec_gives_is_sent(given: dict[str, Any], sent: dict[str, Any]) -> None:
    fields = objective(spec(**given))
    request = ForwardBackwardRequest.model_validate({"inputs": INPUTS, **fields})
    assert request.model_dump(include=set(sent)) == sent


def test_a_spec_of_defaults_sends_what_a_request_means_without_them() -> None:
    fields = objective(spec(loss={"name": "importance_sampling"}))
    assert ForwardBackwardRequest.model_validate({"inputs": INPUTS, **fields}) == (
        ForwardBackwardRequest.model_validate({"inputs": INPUTS})
    )
