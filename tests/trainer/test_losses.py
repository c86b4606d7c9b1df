"""Losses against golden vectors (float64, worked out by hand from the published formulas)."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from espalier.api.run.loss import BuiltInLoss
from espalier.trainer.batch import objective
from espalier.trainer.batch.losses import DEFAULTS, LossSpec, TokenLoss, loss_spec
from espalier.trainer.problems import CommandError

LP = torch.tensor([-0.5, -1.0, -2.0, -0.1, -3.0, -0.2], dtype=torch.float64)
Q = torch.tensor([-0.6, -0.7, -2.0, -0.5, -1.0, -0.9], dtype=torch.float64)
A = torch.tensor([0, -1, 1, -2, 0.5, 1.5], dtype=torch.float64)
W = torch.tensor([0, 1, 1, 0.5, 1, 1], dtype=torch.float64)

CLIP = ("clip_low_threshold", "clip_high_threshold")
GOLDEN = [
    ("cross_entropy", {}, 6.25, [0, -1, -1, -0.5, -1, -1]),
    ("importance_sampling", {}, -0.363829, [0, 0.740818, -1, 2.983649, -0.067668, -3.020629]),
    ("ppo", {}, 0.915982, [0, 0, -1, 2.983649, -0.067668, 0]),
    (
        "ppo",
        dict(zip(CLIP, (0.9, 1.1), strict=True)),
        1.165982,
        [0, 0, -1, 2.983649, -0.067668, 0],
    ),
    ("cispo", {}, 1.767946, [0, 0.740818, -1, 2.983649, -0.067668, -3.020629]),
    ("cispo", dict(zip(CLIP, (0.8, 1.2), strict=True)), 2.52, [0, 0.8, -1, 2.4, -0.4, -1.8]),
    ("dro", {}, 2.71875, [0.005, 0.985, -1, 2.02, -0.6, -1.465]),
    ("gspo", {}, 0.040116, [0, 0, -0.786628, 0, -0.393314, -1.179942]),
    (
        "gspo",
        dict(zip(CLIP, (0.9, 1.1), strict=True)),
        0.340116,
        [0, 0, -0.786628, 0, -0.393314, -1.179942],
    ),
]
WHOLE = [(0, 6)]


def token_loss(  # noqa: PLR0917
    spec: LossSpec, lp: Tensor, q: Tensor, a: Tensor, w: Tensor, sequences: list[tuple[int, int]]
) -> TokenLoss:
    return objective.token_loss(spec, objective.CallTokens(lp, q, None, a, w, sequences))


@pytest.mark.parametrize(("name", "config", "loss", "gradient"), GOLDEN)
def test_golden_vectors(
    name: str, config: dict[str, float], loss: float, gradient: list[float]
) -> None:
    result = token_loss(loss_spec(name, config), LP, Q, A, W, WHOLE)
    assert result.loss == pytest.approx(loss, abs=1e-6)
    assert result.gradient.tolist() == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "importance_sampling", "ppo", "dro"])
def test_the_gradient_is_the_derivative_of_the_loss(name: str) -> None:
    spec, step = loss_spec(name, None), 1e-6
    result = token_loss(spec, LP, Q, A, W, WHOLE)
    for index in range(len(LP)):
        nudge = torch.zeros_like(LP)
        nudge[index] = step
        above = token_loss(spec, LP + nudge, Q, A, W, WHOLE).loss
        below = token_loss(spec, LP - nudge, Q, A, W, WHOLE).loss
        assert (above - below) / (2 * step) == pytest.approx(
            float(result.gradient[index]), abs=1e-6
        )


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo", "gspo"])
def test_on_policy_the_policy_losses_agree(name: str) -> None:
    result = token_loss(loss_spec(name, None), LP, LP, A, W, WHOLE)
    assert result.gradient.tolist() == pytest.approx((-A).tolist())
    assert (result.clipped_low, result.clipped_high) == (0, 0)


@pytest.mark.parametrize(
    ("name", "config", "low", "high"),
    [
        ("ppo", {}, 1, 1),
        ("cispo", {}, 0, 0),
        ("cispo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}, 2, 2),
        ("gspo", {}, 2, 0),
        ("dro", {}, 0, 0),
    ],
)
def test_clipped_tokens_are_counted_by_side(
    name: str, config: dict[str, float], low: int, high: int
) -> None:
    result = token_loss(loss_spec(name, config), LP, Q, A, W, WHOLE)
    assert (result.clipped_low, result.clipped_high) == (low, high)


def test_gspo_knows_each_sequence_of_a_packed_row() -> None:
    spec = loss_spec("gspo", None)
    packed = token_loss(spec, LP, Q, A, W, [(0, 2), (2, 6)])
    apart = [
        token_loss(spec, LP[s], Q[s], A[s], W[s], [(0, s.stop - s.start)])
        for s in (slice(0, 2), slice(2, 6))
    ]
    assert packed.loss == pytest.approx(sum(part.loss for part in apart))
    assert packed.gradient.tolist() == torch.cat([part.gradient for part in apart]).tolist()
    assert packed.loss != pytest.approx(token_loss(spec, LP, Q, A, W, WHOLE).loss)


def test_a_sequence_without_trained_tokens_has_ratio_one() -> None:
    result = token_loss(loss_spec("gspo", None), LP, Q, A, torch.zeros_like(W), WHOLE)
    assert result.gradient.tolist() == (-A).tolist()


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_huds_epsilon_of_ppo_clips_as_far_on_either_side(epsilon: float) -> None:
    clipped = loss_spec("ppo", {"epsilon": epsilon})
    thresholds = {"clip_low_threshold": 1 - epsilon, "clip_high_threshold": 1 + epsilon}
    assert clipped == loss_spec("ppo", thresholds)
    assert clipped.config == thresholds


@pytest.mark.parametrize(
    ("name", "config", "reason", "remedy"),
    [
        ("reinforce", {}, "UnknownLoss", ", ".join(DEFAULTS)),
        ("dro", {"clip_low_threshold": 1.0}, "UnknownLossParameter", "allowed keys: beta"),
        ("ppo", {"clip_low": 1.0}, "UnknownLossParameter", "clip_high_threshold"),
        ("ppo", {"epsilon": 1.5}, "InvalidLossParameter", "0 <= epsilon <= 1"),
        ("ppo", {"epsilon": 0.1, "clip_low_threshold": 0.8}, "InvalidLossParameter", "alone"),
        ("gspo", {"epsilon": 0.2}, "UnknownLossParameter", "clip_high_threshold"),
        ("cross_entropy", {"beta": 1.0}, "UnknownLossParameter", "none"),
        ("ppo", {"clip_low_threshold": 2.0}, "InvalidLossParameter", "clip_low_threshold"),
        ("dro", {"beta": -1.0}, "InvalidLossParameter", "beta"),
    ],
)
def test_an_unknown_loss_parameter_is_named_with_the_known_ones(
    name: str, config: dict[str, float], reason: str, remedy: str
) -> None:
    with pytest.raises(CommandError) as caught:
        loss_spec(name, config)
    assert (caught.value.status, caught.value.problem.reason) == (422, reason)
    assert remedy in caught.value.problem.remedy


def test_the_trainer_computes_the_losses_of_the_api() -> None:
    assert set(DEFAULTS) == set(get_args(BuiltInLoss))
