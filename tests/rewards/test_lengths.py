"""What long completions lose."""

from __future__ import annotations

import pytest

from espalier.api.run.overlong import LengthPenalty, Overlong
from espalier.rewards.lengths import LengthRules, excess, soft_penalty


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (130, -1)]
)
def test_the_soft_penalty_falls_over_the_buffer_from_0_to_minus_1(
    tokens: int, penalty: float
) -> None:
    """DAPO, equation 13, with a longest completion of 100 and a buffer of 20."""
    assert soft_penalty(tokens, longest=100, buffer=20) == pytest.approx(penalty)


def test_a_soft_penalty_without_buffer_is_no_silent_0() -> None:
    with pytest.raises(ValueError, match="needs bufferTokens"):
        soft_penalty(5, 10, None)


@pytest.mark.parametrize(("tokens", "loss"), [(1, 0), (50, 0), (75, -0.5), (100, -1), (150, -2)])
def test_tokens_beyond_the_target_cost_by_their_share_of_it(tokens: int, loss: float) -> None:
    assert excess(tokens, target=50) == pytest.approx(loss)


def test_rules_add_parts_with_weights_of_their_own() -> None:
    rules = LengthRules(
        10,
        Overlong(policy="SoftPenalty", buffer_tokens=4),
        LengthPenalty(coefficient="0.5", target_tokens=5),
    )
    assert rules.weights == {"overlong": 1.0, "length": 0.5}
    assert rules.parts(8) == {"overlong": -0.5, "length": pytest.approx(-0.6)}
    assert LengthRules(10).weights == {}
    assert LengthRules(10).parts(10) == {}
