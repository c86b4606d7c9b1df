"""From rollouts to trajectories, with advantages that are estimated or precomputed.

Rules of rLLM's precomputed advantages (PR 401): missing ones and ones of another length count as
zeros, with one warning; a scalar is an error; present ones that nobody asked for are overwritten,
with one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.client.errors import UntrainableError
from espalier.client.rollout import Rollout

Source = Literal["Estimated", "Precomputed"]


class AdvantageWarning(UserWarning):
    """Advantages that are missing, misshapen or ignored."""


def trajectories(groups: Sequence[Sequence[Rollout]], source: Source) -> list[TrajectoryPayload]:
    """One trajectory per rollout, with its group's id.

    Raises:
        UntrainableError: a rollout that cannot be trained on, or a scalar as its advantages.
    """
    rollouts = [rollout for group in groups for rollout in group]
    if source == "Precomputed":
        return _precomputed(rollouts)
    if any(rollout.advantages for rollout in rollouts):
        _warn("precomputed advantages are there and overwritten by reward minus the group's mean")
    return [rollout.payload() for rollout in rollouts]


def missing_fraction(groups: Sequence[Sequence[Rollout]]) -> float:
    """The part of all turns whose precomputed advantages are missing or of a wrong length."""
    found = [_turn(r, i) for group in groups for r in group for i in range(len(r.turns))]
    return sum(values is None for values in found) / len(found) if found else 0.0


def _precomputed(rollouts: Sequence[Rollout]) -> list[TrajectoryPayload]:
    result, missing, turns = [], 0, 0
    for rollout in rollouts:
        rows = []
        for index, turn in enumerate(rollout.turns):
            values = _turn(rollout, index)
            turns += 1
            missing += values is None
            rows.append(values if values is not None else [0.0] * len(turn.token_ids))
        result.append(rollout.payload(rows))
    if missing:
        _warn(f"{missing} of {turns} turns have no precomputed advantages: zeros are used")
    return result


def _turn(rollout: Rollout, index: int) -> list[float] | None:
    """The advantages of a turn's output tokens; None if they are missing or do not fit."""
    values: Any = rollout.advantages.get(index)
    if values is None:
        return None
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UntrainableError(
            f"{rollout.name}: the advantages of turn {index} are a {type(values).__name__}; "
            "give a list with one value per output token"
        )
    expected = len(rollout.turns[index].token_ids)
    if len(values) != expected:
        _warn(
            f"{rollout.name}: turn {index} has {len(values)} advantages for {expected} output "
            "tokens: zeros are used"
        )
        return None
    return [float(value) for value in values]


def _warn(message: str) -> None:
    warnings.warn(message, AdvantageWarning, stacklevel=4)
