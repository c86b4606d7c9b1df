"""Whose turn it is, what a run's conditions say, and when its runner is made or removed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.objects import (
    LATER,
    NOW,
    checkpoint,
    condition,
    digest,
    head,
    line,
    model,
    pins,
    run,
)
from tests.core.run_views import BRANCHED, PAUSED, RUNNER, SERVED, job, said, view

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.problem import Problem
from espalier.core.conditions import find
from espalier.core.lineage.lineage import BASE_POINT, point
from espalier.core.lineage.lineage_index import grow
from espalier.core.pods.blockers import Blocker
from espalier.core.pods.queued import Place, Wait
from espalier.core.run import run as runs
from espalier.core.run import turn as turns
from espalier.core.run.runner_needs import Lack

GATE = {"metric": "reward/mean", "min": "0.5"}
FULLY_TRAINED = model(adapter={"type": "Full"})
DONE = run(status={"step": 10})
FAILED = run(status={"conditions": [condition("Succeeded", "False", "UnknownDataset")]})
STALLED_MODEL = model(status={"conditions": [condition("Stalled", "True", "BaseUnreadable")]})
OUT_OF_MEMORY = model(
    status={"conditions": [condition("RolloutsReady", "False", "OOMKilled", message="its limit")]}
)
QUEUED = model(
    status={"conditions": [condition("TrainerReady", "False", "Queued", message="no quota")]}
)
OLDER_META = {"creationTimestamp": "2025-01-01T00:00:00Z"}
OLDER = run("older", meta=OLDER_META)
SUSPENDED = run("older", suspend=True, meta={"creationTimestamp": "2025-01-01T00:00:00Z"})
FULL = Problem(detail="no space left", reason="VolumeFull")
# what differs from a run that trains; Ready, Reconciling, Stalled; action on the runner
STAGES = {
    "training": ({}, "True/Training", "False", "False", "Keep"),
    "done": ({"run": DONE}, "True/Succeeded", "False", "False", "Keep"),
    "suspended": ({"run": run(suspend=True)}, "True/Suspended", "False", "False", "Delete"),
    "busy": ({"siblings": [OLDER, run()]}, "Unknown/ModelBusy", "True", "False", "Delete"),
    "paused": ({"head": head(status=PAUSED)}, "True/HeadPinned", "False", "False", "Delete"),
    "no model": ({"model": None}, "False/ModelNotFound", "True", "False", "Keep"),
    "bad model": ({"model": STALLED_MODEL}, "False/BaseUnreadable", "False", "True", "Keep"),
    "full": ({"problem": FULL}, "False/VolumeFull", "False", "True", "Keep"),
    "full weights, pinned elsewhere": (
        {"model": FULLY_TRAINED, "head": head(status=BRANCHED)},
        "False/CheckpointNotLoaded",
        "False",
        "True",
        "Delete",
    ),
    "full weights, gated": (
        {"model": FULLY_TRAINED, "head": head(gate=GATE, status=SERVED)},
        "False/CheckpointNotLoaded",
        "False",
        "True",
        "Delete",
    ),
    "full weights, followed": (
        {"model": FULLY_TRAINED},
        "True/Training",
        "False",
        "False",
        "Keep",
    ),
    "full weights, a client's": (
        {
            "model": FULLY_TRAINED,
            "head": head(status=BRANCHED),
            "run": run(driver="Client"),
        },
        "True/AwaitingClient",
        "False",
        "False",
        "Keep",
    ),
    "no trainer": ({"assigned": False}, "False/Starting", "True", "False", "Keep"),
    "no rollout": ({"head": head(status={"term": 1})}, "False/Starting", "True", "False", "Keep"),
    "restarting": (
        {"run": run(status={"step": 3}), "assigned": False},
        "False/Restarting",
        "True",
        "False",
        "Keep",
    ),
    "no runner": ({"runner": None, "runner_pods": []}, "False/Starting", "True", "False", "Create"),
    "runner starts": ({"runner_pods": []}, "False/Starting", "True", "False", "Keep"),
    "failed": ({"run": FAILED}, "False/UnknownDataset", "False", "True", "Keep"),
    "no rollouts": (
        {"model": model(rollout={"replicas": 0})},
        "False/RolloutsIdle",
        "True",
        "False",
        "Keep",
    ),
    "a client's without rollouts": (
        {"model": model(rollout={"replicas": 0}), "run": run(driver="Client", status={"step": 1})},
        "True/Training",
        "False",
        "False",
        "Keep",
    ),
    "rollouts gone": (
        {"model": OUT_OF_MEMORY, "rollouts": 0, "run": run(status={"step": 3})},
        "False/OOMKilled",
        "True",
        "False",
        "Keep",
    ),
    "no config map": (
        {
            "lack": Lack("TasksetInvalid", "ConfigMap tasks does not exist"),
            "runner": None,
            "runner_pods": [],
        },
        "False/TasksetInvalid",
        "True",
        "False",
        "Keep",
    ),
    "runner suspended": (
        {"runner": job(suspended=True), "runner_pods": []},
        "False/JobSuspended",
        "True",
        "False",
        "Keep",
    ),
    "runner refused": (
        {"blocker": Blocker("FailedCreate", "exceeded quota"), "runner_pods": []},
        "False/FailedCreate",
        "True",
        "False",
        "Keep",
    ),
    "runner queued": (
        {
            "runner": job(suspended=True, place=Place("research", ("j",))),
            "queued": Wait("Queued", "no quota"),
            "runner_pods": [],
        },
        "Unknown/Queued",
        "True",
        "False",
        "Keep",
    ),
    "trainer queued": (
        {"model": QUEUED, "assigned": False},
        "Unknown/Queued",
        "True",
        "False",
        "Delete",
    ),
    "runner outdated": ({"runner": job(pod="other")}, "True/Training", "False", "False", "Delete"),
    "crashed": (
        {"runner": job(failed=True, failure="BackoffLimitExceeded: 20 times")},
        "False/BackoffLimitExceeded",
        "False",
        "True",
        "Keep",
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_its_conditions_and_its_runner(stage: str) -> None:
    changes, ready, reconciling, stalled, action = STAGES[stage]
    decision = runs.decide(view(**changes), NOW)
    assert said(decision, "Ready") == ready
    assert said(decision, "Reconciling").split("/")[0] == reconciling
    assert said(decision, "Stalled").split("/")[0] == stalled
    assert decision.runner == action


@pytest.mark.parametrize(
    ("stage", "suspended", "succeeded"),
    [
        ("training", "False/NotSuspended", "Unknown/InProgress"),
        ("done", "False/NotSuspended", "True/StepsCompleted"),
        ("suspended", "True/Requested", "Unknown/InProgress"),
        ("paused", "True/HeadPinned", "Unknown/InProgress"),
        ("failed", "False/NotSuspended", "False/UnknownDataset"),
    ],
)
def test_suspended_and_succeeded_are_told_apart(stage: str, suspended: str, succeeded: str) -> None:
    decision = runs.decide(view(**STAGES[stage][0]), NOW)
    assert (said(decision, "Suspended"), said(decision, "Succeeded")) == (suspended, succeeded)


def test_the_oldest_run_that_wants_to_train_has_the_turn() -> None:
    newer = run("newer", meta={"creationTimestamp": LATER})
    cases = [
        ([newer, run(), OLDER], "older"),
        (
            [
                newer,
                run(),
                SUSPENDED,
            ],
            "r",
        ),
        ([newer, DONE], "newer"),
        ([newer, FAILED], "newer"),
    ]
    for siblings, expected in cases:
        turn = turns.active(siblings)
        assert turn is not None
        assert turn.metadata.name == expected
    assert turns.active([DONE, run(suspend=True)]) is None


def test_a_failed_run_wants_to_train_again_once_it_is_edited() -> None:
    edited = FAILED.model_copy(update={"metadata": replace(FAILED.metadata, generation=2)})
    assert turns.active([edited]) is edited
    again = view(run=edited, runner=job(failed=True, generation=1), runner_pods=[], trained=3)
    decision = runs.decide(again, NOW)
    assert decision.runner == "Delete"
    assert said(decision, "Stalled").startswith("False")


def test_more_steps_reopen_a_finished_run_with_a_new_runner() -> None:
    grown = run(steps=12, status={"step": 10, "completionTime": NOW}, meta={"generation": 2})
    finished = job(complete=True, completed=NOW, generation=1)
    decision = runs.decide(view(run=grown, runner=finished, runner_pods=[], trained=10), NOW)
    assert decision.runner == "Delete"
    assert said(decision, "Succeeded") == "Unknown/InProgress"
    assert decision.status.completion_time is None


@pytest.mark.parametrize("trained", [None, 10])
def test_a_finished_runner_is_kept_until_the_trainer_is_known_to_lack_a_step(
    trained: int | None,
) -> None:
    finished = job(complete=True, completed=NOW)
    decision = runs.decide(view(runner=finished, runner_pods=[], trained=trained), LATER)
    assert (decision.runner, decision.again_seconds) == ("Keep", None)


def test_a_runner_that_ended_too_early_is_replaced_after_a_pause() -> None:
    finished = job(complete=True, completed=NOW)
    decision = runs.decide(view(runner=finished, runner_pods=[], trained=9), NOW)
    assert (decision.runner, decision.again_seconds) == ("Keep", 15)
    decision = runs.decide(view(runner=finished, runner_pods=[], trained=9), LATER)
    assert decision.runner == "Delete"


def test_a_run_of_a_client_has_no_runner() -> None:
    decision = runs.decide(view(run=run(driver="Client"), runner=None, runner_pods=[]), NOW)
    assert (said(decision, "Ready"), decision.runner) == ("True/AwaitingClient", "Keep")


@pytest.mark.parametrize(
    ("driver", "template", "stalled"),
    [
        ("Runner", "Missing", True),
        ("Runner", "Present", False),
        # Imported before it was looked for.
        ("Runner", None, False),
        # A client may send tokens.
        ("Client", "Missing", False),
    ],
)
def test_a_run_whose_base_has_no_chat_template_says_so_before_its_runner_starts(
    driver: str, template: str | None, *, stalled: bool
) -> None:
    resolved = {"uri": "file:///b", "digest": digest("b"), "chatTemplate": template}
    untemplated = model(status={"resolved": {k: v for k, v in resolved.items() if v}})
    decision = runs.decide(view(run=run(driver=driver), model=untemplated), NOW)
    assert (said(decision, "Stalled") == "True/ChatTemplateMissing") == stalled
    if stalled:
        assert decision.runner == "Keep"


def test_a_run_counts_its_own_steps_over_all_branches_and_never_back() -> None:
    mine = [*line("m", 3), checkpoint(step=2, branch="b2", term=2, parent="m-000001", run_step=4)]
    status = runs.decide(view(checkpoints=mine), NOW).status
    assert status.step == 4
    assert status.latest_checkpoint_ref is not None
    assert status.latest_checkpoint_ref.name == "m-b2-000002"
    assert status.term == 2
    assert status.applied is not None
    assert status.applied.learning_rate == "1e-4"
    assert runs.decide(view(checkpoints=mine, counted=6), NOW).status.step == 6
    assert runs.decide(view(run=run(status={"step": 7})), NOW).status.step == 7


def test_the_latest_checkpoint_does_not_go_back_while_checkpoints_are_deleted() -> None:
    made = line("m", 3)
    known = run(status={"step": 3, "latestCheckpointRef": {"name": "m-000003"}, "term": 1})

    def latest(left: list[Checkpoint], subject: TrainingRun = known) -> str:
        found = runs.decide(view(run=subject, checkpoints=left), NOW).status.latest_checkpoint_ref
        return found.name if found is not None else ""

    assert [latest(made[:n]) for n in (3, 2, 1, 0)] == ["m-000003"] * 4
    grown = [*made[:1], checkpoint(step=4, parent="m-000003")]
    assert latest(grown) == "m-000004"
    fenced = run(status={"step": 9, "latestCheckpointRef": {"name": "m-000002"}, "term": 1})
    assert latest(made, fenced) == "m-000003"


def test_progress_tells_the_time_left_at_the_pace_of_late() -> None:
    mine = [
        checkpoint(step=n, created=f"2026-01-01T00:00:{10 * n:02d}Z", parent="") for n in (1, 2, 3)
    ]
    progress = runs.decide(view(checkpoints=mine), NOW).status.progress
    assert progress is not None
    assert (progress.percent, progress.estimated_remaining_seconds) == (30, 70)


def test_a_runner_that_failed_for_good_leaves_its_last_lines_in_the_condition() -> None:
    dead = replace(
        RUNNER, ready=False, finished=True, died="the container ended with exit code 1: no route"
    )
    over = job(failed=True, failure="BackoffLimitExceeded: 20 times")
    decision = runs.decide(view(runner=over, runner_pods=[dead]), NOW)
    found = find(decision.status.conditions, "Stalled")
    assert found is not None
    assert "exit code 1: no route" in found.message
    assert "suspend and resume it" in found.message
    retried = runs.decide(view(runner_pods=[dead]), NOW)
    found = find(retried.status.conditions, "Ready")
    assert found is not None
    assert found.message == (
        "runner: no pod yet; the try before: the container ended with exit code 1: no route"
    )


def test_a_runner_beside_a_sidecar_is_replaced_after_a_while_and_removed_in_the_end() -> None:
    kept = replace(RUNNER, ready=False, started=False, outlived=("proxy",), died="x", ended=NOW)
    early = runs.decide(view(runner_pods=[kept], trained=3), NOW)
    assert (early.runner, early.again_seconds) == ("Keep", 60)
    assert said(early, "Ready") == "False/SidecarRunning"
    assert runs.decide(view(runner_pods=[kept], trained=3), LATER).runner == "Delete"
    assert runs.decide(view(runner_pods=[kept], trained=10), LATER).runner == "Keep"
    assert runs.decide(view(runner_pods=[kept], run=DONE), NOW).runner == "Delete"


def test_a_run_without_its_tasks_leaves_its_turn_until_it_is_edited() -> None:
    lacks = [condition("TasksReady", "False", "TasksetInvalid")]
    waits = run("older", meta=OLDER_META, status={"conditions": lacks})
    assert turns.active([waits, run()]) == run()
    edited = waits.model_copy(update={"metadata": replace(waits.metadata, generation=2)})
    assert turns.active([edited, run()]) is edited


def test_the_trainer_is_told_where_to_go_on_under_which_term() -> None:
    branched = {
        "term": 2,
        "branch": "b2",
        "branchBase": {"name": "m-000002"},
        "agreed": pins(2, "m-000002", "Branch"),
    }
    told = turns.assignment(run(), model(), head(status=branched), grow(line("m", 4), BASE_POINT))
    assert told is not None
    assert (told.term, told.branch, told.base_name, told.base_step) == (2, "b2", "m-000002", 2)
    assert told.run == "r/uid-r"
    assert turns.assignment(run(), model(), head(status=PAUSED), grow([], BASE_POINT)) is None
    assert turns.assignment(run(), model(), None, grow([], BASE_POINT)) is None


def test_the_trainer_is_wanted_while_a_run_may_train() -> None:
    lineage = grow([], BASE_POINT)
    assert turns.trainer_wanted([run()], head(status=SERVED), lineage)
    assert not turns.trainer_wanted([DONE], head(status=SERVED), lineage)
    assert not turns.trainer_wanted([run()], head(status=PAUSED), lineage)
    assert not turns.trainer_wanted([run()], head(), lineage)


@pytest.mark.parametrize(
    ("asked", "own_steps", "told"),
    [("Keep", 0, "Keep"), ("Reset", 0, "Reset"), ("Reset", 2, "Keep"), (None, 0, "Keep")],
)
def test_a_fork_drops_adams_state_at_its_origin_only(
    asked: str | None, own_steps: int, told: str
) -> None:
    reference = {"name": "m-000003"} | ({"optimizerState": asked} if asked else {})
    fork = model("f", source={"checkpointRef": reference})
    origin = checkpoint("m", 3)
    own = [checkpoint("f", 4, parent="m-000003"), checkpoint("f", 5, parent="f-000004")]
    lineage = grow(own[:own_steps], point(origin))
    wanted = turns.assignment(run(), fork, head(status=SERVED), lineage)
    assert wanted is not None
    assert wanted.optimizer_state == told
    assert wanted.base_name == ("f-000005" if own_steps else "m-000003")
