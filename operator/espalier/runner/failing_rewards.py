"""Which reward fails, and why, where most groups have none. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.run.rewards import Reward
from espalier.api.trainingrun import TrainingRunSpec
from espalier.rewards.figures import TASKSET, told
from espalier.runner.rewards import Group

DETAIL_CHARS = 300


def failing(groups: Sequence[Group], spec: TrainingRunSpec) -> tuple[str, str] | None:
    """What fails most often, with the first detail; and its remedy, empty where nothing is known.

    None where at least half of the groups have their rewards.
    """
    scores = [score for group in groups for score in group.scores]
    if 2 * sum(not group.whole for group in groups) <= len(groups):
        return None
    found = max(told("", scores), key=lambda one: int(one["count"]), default=None)
    if found is None:
        return None
    reward = next((one for one in spec.rewards or () if one.name == found["reward"]), None)
    whose, remedy = _asked(reward, found["cause"]) if reward else _played(found["reward"], spec)
    detail = f"{found['cause']}: {found['detail'][:DETAIL_CHARS]}"
    return f"{whose} fails for {found['count']} of {len(scores)} completions, {detail}", remedy


def _asked(reward: Reward, cause: str) -> tuple[str, str]:
    """Whom a declared reward asks, and what to mend there."""
    named, rest = f"reward {reward.name}", "or let its onError say what such answers are worth"
    if reward.http is not None:
        there = reward.http.service_ref
        return (
            f"{named} (Service {there.name})",
            f"See that Service {there.name} exists in the run's namespace, has port {there.port} "
            f"and answers POST {there.path} with a reward, {rest}",
        )
    if reward.judge is not None:
        judge = reward.judge.model_ref.name
        remedy = f"See that TrainableModel {judge} exists and serves its head"
        if cause == "Malformed":
            remedy = (
                "Take a judge that follows its instructions, show the last line in its rubric, or "
                "raise judge.sampling.maxTokens"
            )
        return f"{named} (judge {judge})", f"{remedy}, {rest}"
    return named, ""


def _played(name: str, spec: TrainingRunSpec) -> tuple[str, str]:
    """Who pays a rollout, or scores it, where no reward is declared."""
    played = spec.taskset.open_env if spec.taskset is not None else None
    if name != TASKSET or played is None:
        return f"reward {name}", ""
    service = played.service_ref
    return (
        f"taskset.openEnv (Service {service.name})",
        f"See that Service {service.name} exists in the run's namespace and answers OpenEnv's "
        f"protocol at port {service.port}, or let taskset.onError say what such rollouts are worth",
    )
