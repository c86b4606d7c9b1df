"""Which rollouts of a step are kept beside its checkpoint, and what of them. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import regex

from espalier.api.run.rollout_log import RolloutLog
from espalier.client.rollout import tokens_of
from espalier.runner.rewards import Group, records
from espalier.runner.run_end import UserError

REDACTED = "[redacted]"
# For one pattern and one text. A model may write what a pattern backtracks on for hours.
PATTERN_SECONDS = 0.2


@dataclass(frozen=True)
class Kept:
    """What the optimizer step is told: its records, and whether the trainer may make its own."""

    rollouts: list[dict[str, Any]]
    keep_rollouts: bool = True


def kept(
    log: RolloutLog | None, groups: Sequence[Group], trained: Sequence[Group], step: int
) -> Kept:
    """The records of a step; all of them without a ``log``.

    Args:
        log: of the run.
        groups: everything that was sampled for the step.
        trained: those of them that it was taken with.
        step: number of the step in its run, from 1.

    Raises:
        UserError: ``RolloutLogInvalid`` for a pattern that is no regular expression.
    """
    if log is None:
        return Kept(records(groups, trained))
    if step % log.every_steps:
        return Kept([], keep_rollouts=False)
    chosen = _chosen(groups, log.groups_per_step, step)
    completions = [completion for group in chosen for completion in group.completions]
    rows = records(chosen, trained)
    if log.include_tokens == "Sampled":
        rows = [row | tokens_of(one) for row, one in zip(rows, completions, strict=True)]
    patterns = _patterns(log.redact_patterns or [])
    return Kept([_redacted(row, patterns) for row in rows] if patterns else rows)


def _chosen(groups: Sequence[Group], count: int, step: int) -> list[Group]:
    """By the step alone, so that a restarted runner keeps what the killed one would have."""
    if count >= len(groups):
        return list(groups)
    places = random.Random(step).sample(range(len(groups)), count)
    return [groups[place] for place in sorted(places)]


def _patterns(texts: Sequence[str]) -> list[regex.Pattern[str]]:
    found = []
    for text in texts:
        try:
            found.append(regex.compile(text))
        except (regex.error, RecursionError) as error:
            raise UserError(
                "RolloutLogInvalid",
                f"rolloutLog.redactPatterns has {text!r}, which is no regular expression: {error}",
                "Write it as Python's re does",
            ) from error
    return found


def _redacted(row: dict[str, Any], patterns: Sequence[regex.Pattern[str]]) -> dict[str, Any]:
    """The record without what a pattern matches; its tokens would spell it out."""
    clean = {name: _without(value, patterns) for name, value in row.items() if name in _TEXTS}
    if all(clean[name] == row[name] for name in clean):
        return row
    rest = {name: value for name, value in row.items() if name not in ("token_ids", "logprobs")}
    left_out = {"tokens_left_out": "rolloutLog.redactPatterns"} if "token_ids" in row else {}
    return rest | clean | left_out


_TEXTS = ("prompt", "completion", "scorer_errors")


def _without(value: Any, patterns: Sequence[regex.Pattern[str]]) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner, patterns) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without(inner, patterns) for inner in value]
    if not isinstance(value, str):
        return value
    for pattern in patterns:
        try:
            value = pattern.sub(REDACTED, value, timeout=PATTERN_SECONDS)
        except TimeoutError:
            # What it would have matched is not known: nothing of the text is kept.
            return f"{REDACTED}: {pattern.pattern!r} took longer than {PATTERN_SECONDS} s"
    return value
