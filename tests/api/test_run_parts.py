"""Parts of a run's spec that say what becomes of rollouts that fail or take too long."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from espalier.api.run.rollout_errors import RolloutErrors
from espalier.api.run.timeouts import Timeouts


def test_a_failed_rollout_is_begun_anew_unless_the_run_says_otherwise() -> None:
    errors = RolloutErrors()
    assert (errors.policy, errors.max_retries, errors.min_group_size) == ("Retry", None, None)
    assert (errors.max_error_percent, errors.max_consecutive_failures) == (20, 3)


@pytest.mark.parametrize(
    "given",
    [
        {"policy": "Ignore"},
        {"maxRetries": 0},
        {"minGroupSize": 1},
        {"maxErrorPercent": 101},
        {"maxConsecutiveFailures": 0},
    ],
)
def test_what_would_mean_nothing_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RolloutErrors.model_validate(given)


@pytest.mark.parametrize("name", list(Timeouts.model_fields))
@pytest.mark.parametrize("seconds", [0, 86401])
def test_every_wait_is_between_a_second_and_a_day(name: str, seconds: int) -> None:
    with pytest.raises(ValidationError):
        Timeouts.model_validate({name: seconds})
