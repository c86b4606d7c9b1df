"""Rules of the driver: what a run with driver Runner needs, and what is its alone."""

from __future__ import annotations

from typing import Any

from espalier.api.meta import Rule, newly

NEEDS: tuple[Rule, ...] = (
    (
        "self.driver != 'Runner' || has(self.loss)",
        "driver Runner needs loss: name one, such as importance_sampling",
        ".loss",
    ),
    (
        "self.driver != 'Runner' || has(self.learningRate)",
        'driver Runner needs learningRate: give a quoted decimal, such as "1e-5"',
        ".learningRate",
    ),
    (
        "self.driver != 'Runner' || has(self.taskset)",
        "driver Runner needs taskset: name a source, or set driver: Client",
        ".taskset",
    ),
)

RUNNER: tuple[Rule, ...] = (
    (
        "self.driver == 'Runner' || !has(self.runner)",
        "runner belongs to driver Runner: a client's script is no pod of ours",
        ".runner",
    ),
)

_RUNNERS_ALONE = (
    "groupsPerStep",
    "batch",
    "groupFilter",
    "schedule",
    "evaluation",
    "rewards",
    "rewardAggregation",
    "overlong",
    "lengthPenalty",
    "limits",
    "rolloutErrors",
    "timeouts",
    "seed",
)
# What the runner does and a client's script does itself, by field.
_REMEDIES = {
    "rolloutLog": "a client's script says with each step what it keeps",
    "tracking": "a client's script reports by its own trackers, such as those of a Fit",
}

# Fields of sampling that a client's commands do not show.
_UNSEEN = ("stop", "stopTokenIds", "chatTemplateKwargs")
_BY_RUNNER = "self.driver == 'Runner'"


def of_runner_alone() -> list[dict[str, Any]]:
    """Fields that a client's script decides, or does, itself."""
    whys = dict.fromkeys(_RUNNERS_ALONE, "a client's script chooses its batches") | _REMEDIES
    return [
        newly(
            f"{_BY_RUNNER} || !has(self.{field})",
            f"{field} belongs to driver Runner: {why}",
            f".{field}",
            unless=f"has(before.{field})",
        )
        for field, why in whys.items()
    ]


def unseen_sampling() -> dict[str, Any]:
    """Fields of sampling that no command of a client could be held to."""
    held = " && ".join(f"!has(self.sampling.{field})" for field in _UNSEEN)
    return newly(
        f"{_BY_RUNNER} || !has(self.sampling) || ({held})",
        f"{', '.join(_UNSEEN)} belong to driver Runner: a client's script says them when it "
        "samples",
        ".sampling",
        unless="has(before.sampling) && before.sampling == self.sampling",
    )
