"""The advantages of a request's trajectories: their own, or estimated from rewards."""

from __future__ import annotations

from espalier.api.run.advantage import Estimator, Scale
from espalier.api.wire.gradients import ForwardBackwardRequest, TrajectoriesRequest
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.core.advantages import advantages
from espalier.trainer.problems import invalid


def estimates(
    trajectories: list[TrajectoryPayload],
    groups: list[list[int]] | None,
    request: TrajectoriesRequest,
) -> list[float]:
    """One advantage per trajectory: its own, or estimated from the rewards of its group.

    422 for a group that has no advantages.
    """
    result = [0.0] * len(trajectories)
    # As HUD documents it: without groups, all trajectories form one group.
    whole = groups or [list(range(len(trajectories)))]
    open_groups = [group for group in whole if not _precomputed(trajectories, group, result)]
    estimator: Estimator = "GroupMean"
    scale: Scale = "None"
    if isinstance(request, ForwardBackwardRequest):
        estimator, scale = request.advantage_estimator, request.advantage_scale
    if len(open_groups) < len(whole) or _by_token(trajectories):
        refuse_estimates(estimator, scale, "inputs bring their own advantages")
    rewards = [[trajectories[index].reward for index in group] for group in open_groups]
    try:
        found = advantages(rewards, estimator, scale)
    except ValueError as error:
        raise invalid(
            "advantage_estimator",
            str(error),
            "send groups of 2 or more, or use GroupMean with scale None",
        ) from error
    for group, values in zip(open_groups, found, strict=True):
        for index, value in zip(group, values, strict=True):
            result[index] = request.reward_scale * value
    return result


def _precomputed(
    trajectories: list[TrajectoryPayload], group: list[int], result: list[float]
) -> bool:
    """Whether a group brings its own advantages, which are then written to ``result``."""
    given = [trajectories[index].advantage for index in group]
    known = [advantage for advantage in given if advantage is not None]
    if known and len(known) < len(group):
        missing = group[given.index(None)]
        raise invalid(
            f"inputs[{missing}].advantage",
            "is missing while others of its group have one",
            "give every trajectory of a group its advantage, or none",
        )
    for index, advantage in zip(group, known, strict=False):
        result[index] = advantage
    return bool(known)


def _by_token(trajectories: list[TrajectoryPayload]) -> bool:
    """Whether every sample brings one advantage per token."""
    return all(s.advantages is not None for t in trajectories for s in t.samples)


def refuse_estimates(estimator: Estimator, scale: Scale, because: str) -> None:
    """422 for a request that says how advantages are estimated where none is."""
    for field, value, plain in (
        ("advantage_estimator", estimator, "GroupMean"),
        ("advantage_scale", scale, "None"),
    ):
        if value != plain:
            raise invalid(
                field,
                f"is {value}, and {because}",
                "leave it out, or train on rewards with a loss that reads advantages",
            )
