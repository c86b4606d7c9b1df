"""Deadline and budget of a run: what counts, when it is reached, and what that does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.core.objects import LATER, NOW, checkpoint, condition, head, run
from tests.core.run_views import PAUSED, RUNNER, SERVED, job, said, view

from espalier.api.wire.commits import Tokens
from espalier.core.conditions import find
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.lineage.lineage_index import grow
from espalier.core.manifests.labels import RUN_TOKENS_ANNOTATION
from espalier.core.run import run as runs
from espalier.core.run import turn as turns

STARTED = {"startTime": NOW}
ACTIVE = {**STARTED, "activeSince": NOW}
OLDER = run("older", meta={"creationTimestamp": "2025-01-01T00:00:00Z"})
# what differs from a run that trains, and was active from NOW on; seconds and since at LATER
CLOCKS: dict[str, tuple[dict[str, Any], dict[str, Any], int, str | None]] = {
    "training": (ACTIVE, {}, 0, NOW),
    "before it ever trained": ({}, {"assigned": False}, 0, None),
    "at its first step": ({}, {}, 0, LATER),
    "after a crash of the trainer": (ACTIVE, {"assigned": False}, 0, NOW),
    "suspended": (ACTIVE, {"run": {"suspend": True}}, 60, None),
    "suspended before": ({**STARTED, "activeSeconds": 60}, {"run": {"suspend": True}}, 60, None),
    "resumed": ({**STARTED, "activeSeconds": 60}, {}, 60, LATER),
    "waiting for another run": (ACTIVE, {"siblings": [OLDER]}, 60, None),
    "paused with the head": (ACTIVE, {"head": head(status=PAUSED)}, 60, None),
    "done": ({**ACTIVE, "step": 10}, {}, 60, None),
    "failed": (
        {**ACTIVE, "conditions": [condition("Succeeded", "False", "UnknownDataset")]},
        {},
        60,
        None,
    ),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_the_time_of_a_run_counts_while_it_has_its_turn(case: str) -> None:
    status, changes, seconds, since = CLOCKS[case]
    subject = run(status=status, **changes.pop("run", {}))
    siblings = [*changes.pop("siblings", []), subject]
    decided = runs.decide(view(run=subject, siblings=siblings, **changes), LATER).status
    assert (decided.active_seconds, decided.active_since) == (seconds, since)


TRAINED = {"sampledTokens": 900, "trainedTokens": 500}
USED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "deadline": (
        {"activeDeadlineSeconds": 60},
        ACTIVE,
        "DeadlineExceeded",
        "the run has had its turn for 60 s, and spec.activeDeadlineSeconds is 60. Raise or remove "
        "spec.activeDeadlineSeconds, and it goes on from its last step",
    ),
    "sampled tokens": (
        {"budget": {"maxSampledTokens": 900}},
        {**ACTIVE, "usage": TRAINED},
        "BudgetExhausted",
        "900 are used, and spec.budget.maxSampledTokens is 900. Raise or remove "
        "spec.budget.maxSampledTokens, and it goes on from its last step",
    ),
    "trained tokens": (
        {"budget": {"maxTrainedTokens": 499}},
        {**ACTIVE, "usage": TRAINED},
        "BudgetExhausted",
        "500 are used, and spec.budget.maxTrainedTokens is 499",
    ),
    "time of GPUs": (
        {"budget": {"maxGpuSeconds": 220}},
        {**ACTIVE, "usage": {"gpuSeconds": 100, "gpus": 2, "gpusSince": NOW}},
        "BudgetExhausted",
        "220 are used, and spec.budget.maxGpuSeconds is 220",
    ),
}


@pytest.mark.parametrize("case", USED)
def test_a_bound_that_is_reached_ends_the_run_and_frees_its_pods(case: str) -> None:
    spec, status, reason, message = USED[case]
    subject = run(status={**status, "step": 4}, **spec)
    decision = runs.decide(view(run=subject), LATER)
    assert said(decision, "Succeeded") == f"False/{reason}"
    assert said(decision, "Stalled") == f"True/{reason}"
    assert decision.runner == "Delete"
    found = find(decision.status.conditions, "Ready")
    assert found is not None
    assert found.message.startswith(message)
    ended = subject.model_copy(update={"status": decision.status})
    assert not turns.trainer_wanted([ended], head(status=SERVED), grow([], BASE_POINT))


@pytest.mark.parametrize("case", USED)
def test_a_run_that_was_ended_goes_on_once_the_bound_is_raised(case: str) -> None:
    spec, status, *_ = USED[case]
    subject = run(status={**status, "step": 4}, **spec)
    ended = subject.model_copy(update={"status": runs.decide(view(run=subject), LATER).status})
    elsewhere = ended.model_copy(
        update={
            "metadata": replace(ended.metadata, generation=2),
            "spec": ended.spec.model_copy(update={"group_size": 16}),
        }
    )
    assert turns.active([elsewhere]) is None
    free = ended.spec.model_copy(update={"budget": None, "active_deadline_seconds": None})
    raised = elsewhere.model_copy(update={"spec": free})
    assert turns.active([raised]) is raised
    decision = runs.decide(view(run=raised, runner=None, runner_pods=[]), LATER)
    assert said(decision, "Succeeded") == "Unknown/InProgress"
    assert decision.runner == "Create"


def test_a_bound_of_time_is_looked_for_when_it_is_due() -> None:
    bounded = {"activeDeadlineSeconds": 100, "budget": {"maxGpuSeconds": 500}}
    cases: list[tuple[dict[str, Any], int, float | None]] = [
        ({}, 0, None),
        ({"activeDeadlineSeconds": 100}, 0, 40),
        # Of two GPUs' 500 s, 200 were counted before, and 120 since: 180 are left.
        ({"budget": {"maxGpuSeconds": 500}}, 2, 60),
        ({"budget": {"maxGpuSeconds": 350}}, 2, 15),
        (bounded, 2, 40),
    ]
    used = {"gpuSeconds": 200, "gpus": 2, "gpusSince": NOW}
    for spec, gpus, seconds in cases:
        status = {**ACTIVE, "usage": used if gpus else None}
        decision = runs.decide(view(run=run(status=status, **spec), gpus=gpus), LATER)
        assert decision.again_seconds == seconds


# gpus now; recorded; what is written at LATER
GPUS: list[tuple[int, dict[str, Any], tuple[int, int, str | None]]] = [
    (2, {}, (0, 2, LATER)),
    (2, {"gpuSeconds": 7, "gpus": 2, "gpusSince": "2026-01-01T00:00:01Z"}, (7, 2, None)),
    (2, {"gpuSeconds": 7, "gpus": 2, "gpusSince": NOW}, (127, 2, LATER)),
    (1, {"gpuSeconds": 7, "gpus": 2, "gpusSince": "2026-01-01T00:00:50Z"}, (27, 1, LATER)),
    (0, {"gpuSeconds": 7, "gpus": 2, "gpusSince": "2026-01-01T00:00:50Z"}, (27, 0, None)),
    # A clock that was set back takes nothing away.
    (0, {"gpuSeconds": 7, "gpus": 2, "gpusSince": "2026-01-02T00:00:00Z"}, (7, 0, None)),
]


@pytest.mark.parametrize(("gpus", "recorded", "written"), GPUS)
def test_gpu_seconds_are_those_of_the_gpus_that_were_seen(
    gpus: int, recorded: dict[str, Any], written: tuple[int, int, str | None]
) -> None:
    subject = run(status={**ACTIVE, "usage": recorded})
    usage = runs.decide(view(run=subject, gpus=gpus), LATER).status.usage
    assert usage is not None
    seconds, now, since = written
    kept = recorded.get("gpusSince") if since is None and now else since
    assert (usage.gpu_seconds, usage.gpus, usage.gpus_since) == (seconds, now, kept)


def test_gpus_that_serve_while_the_run_waits_are_not_its_own() -> None:
    suspended = run(suspend=True, status=STARTED)
    assert runs.decide(view(run=suspended, gpus=8), LATER).status.usage is None


def test_tokens_are_the_most_that_anybody_has_heard_of() -> None:
    def usage(sampled: int, **changes: Any) -> tuple[int, int]:
        status = {"usage": {"sampledTokens": sampled, "trainedTokens": 3}}
        found = runs.decide(view(run=run(status=status), **changes), NOW).status.usage
        assert found is not None
        return found.sampled_tokens, found.trained_tokens

    on_it = checkpoint(annotations={RUN_TOKENS_ANNOTATION: '{"sampled": 20, "trained": 10}'})
    spoilt = checkpoint(annotations={RUN_TOKENS_ANNOTATION: '{"sampled": "all"}'})
    assert usage(9) == (9, 3)
    assert usage(9, checkpoints=[on_it]) == (20, 10)
    assert usage(9, checkpoints=[spoilt]) == (9, 3)
    assert usage(30, checkpoints=[on_it], tokens=Tokens(sampled=25, trained=12)) == (30, 12)


def test_the_runner_of_an_ended_run_that_is_gone_is_not_made_again() -> None:
    subject = run(status=ACTIVE, activeDeadlineSeconds=60)
    over = view(run=subject, runner=None, runner_pods=[])
    assert runs.decide(over, LATER).runner == "Keep"
    leaving = view(run=subject, runner=job(terminating=True), runner_pods=[RUNNER])
    assert runs.decide(leaving, LATER).runner == "Keep"
