"""What a run waits for, in a sentence; and what lies between two checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cli.checkpoints import manifests
from tests.runner.standin import spec

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainingrun import TrainingRun
from espalier.cli.compare_checkpoints import between
from espalier.core.head.editor import asked_by
from espalier.core.run.why import why


def run(name: str = "run", *conditions: tuple[str, str, str, str], seen: int = 2) -> TrainingRun:
    said = [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, status, reason, message in conditions
    ]
    return TrainingRun.model_validate(
        {
            "metadata": {"name": name, "namespace": "ml", "uid": "u", "generation": 2},
            "spec": spec(),
            "status": {"observedGeneration": seen, "conditions": said},
        }
    )


BUSY = ("Ready", "Unknown", "ModelBusy", "TrainingRun first trains arith; waits for it")


@pytest.mark.parametrize(
    ("conditions", "seen", "sentence"),
    [
        ([], -1, "run has not been seen by the operator yet"),
        ([("Ready", "True", "Training", "step 1 of 3")], 1, "run was edited, unseen"),
        ([], 2, "run has no condition Ready"),
        (
            [("Succeeded", "True", "StepsCompleted", "3 of 3 steps")],
            2,
            "run waits for nothing: it has taken all its steps (3 of 3 steps).",
        ),
        (
            [("Stalled", "True", "TasksetInvalid", "line 3 is no JSON")],
            2,
            "run needs you, TasksetInvalid: line 3 is no JSON",
        ),
        (
            [("Suspended", "True", "Requested", "spec.suspend is true")],
            2,
            "run is held, and goes on with `espalier run resume run`: spec.suspend is true",
        ),
        (
            [("Suspended", "True", "HeadPinned", "CheckpointHead a is pinned")],
            2,
            "run is held, and goes on when the head is not pinned with onPin Pause",
        ),
        (
            [("Suspended", "True", "LogprobsMisaligned", "policy/mismatch_kl is 0.02")],
            2,
            "run is held, and goes on once logprobs.mismatchKLThreshold is raised or onMisaligned "
            "is Warn: policy/mismatch_kl is 0.02",
        ),
        (
            [("Ready", "True", "Training", "step 1 of 3")],
            2,
            "run waits for nothing: it trains (step 1 of 3).",
        ),
        (
            [("Ready", "True", "AwaitingClient", "step 0 of 3: no script has taken a step yet")],
            2,
            "run waits for your script to train it (step 0 of 3",
        ),
        (
            [("Ready", "False", "Starting", "trainer: 0/3 nodes are available")],
            2,
            "run waits, Starting: trainer: 0/3 nodes are available",
        ),
        (
            [BUSY],
            2,
            "run waits for first to end; first waits, Starting: rollouts: pulling the image",
        ),
    ],
)
def test_why_names_the_one_thing(
    conditions: list[tuple[str, str, str, str]], seen: int, sentence: str
) -> None:
    first = run("first", ("Ready", "False", "Starting", "rollouts: pulling the image"))
    said = why(run("run", *conditions, seen=seen), {"first": first}.__getitem__)
    assert said.startswith(sentence)


def test_runs_that_say_that_they_wait_for_each_other_are_told_once() -> None:
    message = "TrainingRun run trains arith; waits for it"
    runs = {"run": run("run", BUSY), "first": run("first", (*BUSY[:3], message))}
    said = why(runs["run"], runs.get)
    assert said == f"run waits for first to end; first waits, ModelBusy: {message}"


CHECKPOINTS = {
    manifest["metadata"]["name"]: Checkpoint.model_validate(
        manifest | {"metadata": {"namespace": "ml", "uid": "u", **manifest["metadata"]}}
    )
    for manifest in manifests()
}


@pytest.mark.parametrize(
    ("first", "second", "ancestor", "back", "forward"),
    [
        ("arith-000001", "arith-000003", "arith-000001", 0, 2),
        ("arith-000003", "arith-000001", "arith-000001", 2, 0),
        ("arith-000003", "arith-b2-000003", "arith-000001", 2, 2),
        ("arith-000002", "arith-000002", "arith-000002", 0, 0),
    ],
)
def test_between_two_checkpoints_lies_their_common_ancestor(
    first: str, second: str, ancestor: str, back: int, forward: int
) -> None:
    found = between(CHECKPOINTS[first], CHECKPOINTS[second], list(CHECKPOINTS.values()))
    assert (found.ancestor, found.back, found.forward) == (ancestor, back, forward)


def test_checkpoints_without_a_common_ancestor_meet_at_the_base() -> None:
    lonely = [CHECKPOINTS["arith-000003"], CHECKPOINTS["arith-b2-000003"]]
    found = between(lonely[0], lonely[1], lonely)
    assert found.ancestor == "base"
    assert found.metrics == {"reward/mean": (0.5, 0.75)}
    assert found.settings == {"term": ("1", "2")}


def entry(manager: str, time: str, *fields: str) -> dict[str, Any]:
    return {
        "manager": manager,
        "time": time,
        "fieldsV1": {"f:spec": {f"f:{field}": {} for field in fields}},
    }


@pytest.mark.parametrize(
    ("entries", "annotations", "who"),
    [
        ([], {}, ""),
        ([entry("kubectl-edit", "2", "mode")], {}, "kubectl-edit"),
        (
            [entry("argocd-controller", "1", "mode"), entry("kubectl-patch", "3", "checkpointRef")],
            {},
            "kubectl-patch",
        ),
        ([entry("someone", "9", "gate"), entry("kubectl-apply", "1", "mode")], {}, "kubectl-apply"),
        (
            [entry("espalier-gateway", "1", "mode")],
            {"espalier.dev/requested-by": "ada"},
            "ada through espalier-gateway",
        ),
    ],
)
def test_the_last_to_ask_is_who_moved_the_head(
    entries: list[dict[str, Any]], annotations: dict[str, str], who: str
) -> None:
    metadata = {"name": "arith", "managedFields": entries, "annotations": annotations}
    assert asked_by(metadata) == who
