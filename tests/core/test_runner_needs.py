"""What a runner mounts or reads: named as soon as it is missing, before a pod waits for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.core.objects import NOW, run
from tests.core.run_views import RUNNER, view

from espalier.core.conditions import find
from espalier.core.run import run as runs
from espalier.core.run.runner_needs import absent, map_keys, missing, peers

TASKS = {"seed": 1, "configMap": {"name": "tasks"}}
HELD_OUT = {"name": "held", "taskset": {**TASKS, "configMap": {"name": "tasks", "key": "held"}}}
STYLE = {"name": "style", "python": {"configMapRef": {"name": "rewards", "key": "style.py"}}}
LOSS = {"name": "Custom", "customRef": {"name": "losses"}}
DECLARED = run(taskset=TASKS, evaluation=[HELD_OUT], rewards=[STYLE], loss=LOSS)
THERE = {"tasks": {"data": {"tasks.jsonl": "", "held": ""}}, "rewards": {"data": {"style.py": ""}}}


@pytest.mark.parametrize(
    ("maps", "reason", "said"),
    [
        ({}, "TasksetInvalid", "spec.taskset.configMap.name: ConfigMap tasks does not exist"),
        (
            {"tasks": {"data": {"tasks.jsonl": ""}}},
            "TasksetInvalid",
            "spec.evaluation[held].taskset.configMap.key: ConfigMap tasks has no key held",
        ),
        (
            {"tasks": {"data": {"tasks.jsonl": "", "held": ""}}},
            "RewardInvalid",
            "spec.rewards[style].python.configMapRef.name: ConfigMap rewards does not exist",
        ),
        (
            {"tasks": {"data": {"tasks.jsonl": "", "held": ""}}, "rewards": {"data": {"a": ""}}},
            "RewardInvalid",
            "spec.rewards[style].python.configMapRef.key: ConfigMap rewards has no key style.py: "
            "it has a",
        ),
        (
            THERE,
            "LossInvalid",
            "spec.loss.customRef.name: ConfigMap losses does not exist: create it",
        ),
        (
            {**THERE, "losses": {"data": {"a": ""}}},
            "LossInvalid",
            "spec.loss.customRef.key: ConfigMap losses has no key loss.py: it has a",
        ),
    ],
)
def test_the_first_key_that_is_missing_is_named_with_its_field(
    maps: dict[str, Any], reason: str, said: str
) -> None:
    lacks = [missing(one, maps.get(one.name)) for one in map_keys(DECLARED.spec)]
    lack = next(one for one in lacks if one is not None)
    assert lack.reason == reason
    assert said in lack.message
    decision = runs.decide(view(run=DECLARED, runner=None, runner_pods=[], lack=lack), NOW)
    for type_ in ("Ready", "TasksReady"):
        found = find(decision.status.conditions, type_)
        assert found is not None
        assert (found.status, found.reason, found.message) == ("False", reason, lack.message)
    # No pod is made that would hang on a mount, and another run of the model may go first.
    assert decision.runner == "Keep"


def test_a_service_or_judge_that_is_missing_is_named_with_its_field() -> None:
    echo = {"seed": 1, "openEnv": {"serviceRef": {"name": "echo", "port": 80}}}
    pay = {"name": "style", "http": {"serviceRef": {"name": "pay", "port": 80}}}
    kind = {"name": "kind", "judge": {"modelRef": {"name": "critic"}, "rubric": "Is it kind?"}}
    played = [absent(one).message for one in peers(run(taskset=echo).spec)]
    assert played == [
        "spec.taskset.openEnv.serviceRef.name: Service echo does not exist: create it"
    ]
    asking = run(taskset=TASKS, rewards=[pay, kind])
    lacks = [absent(one) for one in peers(asking.spec)]
    assert [(one.reason, one.message.partition(":")[0]) for one in lacks] == [
        ("RewardInvalid", "spec.rewards[style].http.serviceRef.name"),
        ("RewardInvalid", "spec.rewards[kind].judge.modelRef.name"),
    ]
    decision = runs.decide(view(run=asking, runner=None, runner_pods=[], lack=lacks[1]), NOW)
    found = find(decision.status.conditions, "Ready")
    assert found is not None
    assert "TrainableModel critic does not exist: create it" in found.message
    there = find(runs.decide(view(run=asking), NOW).status.conditions, "TasksReady")
    assert there is not None
    assert there.message == "in ConfigMap tasks, Service pay, TrainableModel critic"


def test_what_is_there_lets_the_runner_start() -> None:
    found = find(runs.decide(view(run=DECLARED), NOW).status.conditions, "TasksReady")
    assert found is not None
    assert (found.status, found.message) == ("True", "in ConfigMap tasks, rewards, losses")
    assert map_keys(run(driver="Client", taskset=TASKS).spec) == ()


@pytest.mark.parametrize(
    "kubelet", ['secret "wandb" not found', "couldn't find key api-key in Secret default/wandb"]
)
def test_a_trackers_secret_that_the_kubelet_does_not_find_is_named_with_its_field(
    kubelet: str,
) -> None:
    secret = {"name": "wandb", "key": "api-key"}
    tracked = run(tracking={"wandb": {"apiKeySecretRef": secret}})
    reason = "CreateContainerConfigError"
    stuck = replace(
        RUNNER,
        ready=False,
        started=False,
        waiting=f"{reason}: {kubelet}",
        waiting_reason=reason,
    )
    decision = runs.decide(view(run=tracked, runner_pods=[stuck]), NOW)
    found = find(decision.status.conditions, "Ready")
    assert found is not None
    assert found.reason == reason
    assert found.message == (
        "runner: spec.tracking.wandb.apiKeySecretRef: Secret wandb with the key api-key is not "
        "there: create it, and the runner starts"
    )
