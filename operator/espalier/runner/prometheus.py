"""Metrics of the runner. Its pod says of which model and run they are, so no label does."""

from __future__ import annotations

from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from espalier.rewards.failure import Cause

IN_FLIGHT = Gauge(
    "espalier_runner_rollouts_in_flight", "Rollouts that are being sampled or played."
)
ROLLOUTS = Counter("espalier_runner_rollouts", "Rollouts that ended, failed ones included.")
RETRIES = Counter("espalier_runner_rollout_retries", "Tries of rollouts after their first.")
REWARD_SECONDS = Histogram(
    "espalier_runner_reward_duration_seconds",
    "Time in which the rollouts of one task were scored, all rewards together.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
ERRORS = Counter(
    "espalier_runner_reward_errors",
    "Rewards that could not be had, by cause: Raised, Timeout, Memory, Died, NotFinite, "
    "OutOfRange, Malformed or Unreachable.",
    ["cause"],
)
# From the start: how often something happened is not known of a series that begins with 1.
for _cause in get_args(Cause):
    ERRORS.labels(_cause)
GROUPS = Counter(
    "espalier_runner_groups",
    "Groups by what came of them: trained; dropped, as their rewards are equal, or are missing, or "
    "an answer was cut; too_long, as the prompt did not fit. Counted when their step is taken.",
    ["outcome"],
)
TOKENS = Counter(
    "espalier_runner_completion_tokens", "Tokens of completions; counted when their step is taken."
)
STEPS = Counter("espalier_runner_steps", "Optimizer steps that the run has taken.")
PHASES = Counter(
    "espalier_runner_phase_seconds",
    "Wall-clock time of the steps: sampling, reward, training, commit, swap, idle. The phases add "
    "up to the whole: see time/... below.",
    ["phase"],
)
BARREN_ROUNDS = Counter(
    "espalier_runner_rounds_without_step", "Rounds of sampling in which no group could teach."
)
WAITS = Counter(
    "espalier_runner_waits",
    "Polls for something outside of the runner, by the reason of the wait.",
    ["reason"],
)
