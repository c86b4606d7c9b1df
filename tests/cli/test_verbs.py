"""models, run and checkpoint against a real API server, through kubectl."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dev.apiserver import ApiServer
from tests.cli.checkpoints import manifests
from tests.cli.test_cluster_commands import apply, condition, espalier, model, training_run

__all__ = ["espalier"]
Command = Any
BRANCHES = [
    {"name": "main", "firstStep": 1, "lastStep": 3, "tip": "arith-000003"},
    {"name": "b2", "base": "arith-000001", "firstStep": 2, "tip": "arith-b2-000003"},
]


def head(**status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "CheckpointHead",
        "metadata": {"name": "arith"},
        "spec": {"modelRef": {"name": "arith"}, "mode": "Track"},
        "status": {"observedGeneration": 1, "term": 2, **status},
    }


def served(name: str) -> dict[str, Any]:
    """What a head's status says once it serves a checkpoint."""
    digest = "sha256:" + "5" * 64
    move = {"name": name, "step": 3, "term": 2, "reason": "Advanced"}
    return {
        "current": {"name": name, "step": 3, "digest": digest, "term": 2},
        "history": [{**move, "time": "2026-01-02T00:00:00Z"}],
        "conditions": [condition("Ready", "Tracking", f"serves {name}")],
    }


@pytest.fixture
def tree(apiserver: ApiServer, namespace: str) -> None:
    """A model with two branches and a head."""
    ready = condition("Ready", "Ready", "trained and served")
    tree = {"checkpoints": 5, "branches": BRANCHES}
    shown = model(tree=tree, conditions=[ready])
    apply(apiserver, namespace, shown, *manifests(), head(**served("arith-b2-000003")))


@pytest.mark.usefixtures("tree")
def test_models_are_listed_as_table_names_and_json(espalier: Command) -> None:
    assert espalier("models", "list", "-q").output == "arith\n"
    (row,) = json.loads(espalier("models", "list", "--json").output)
    assert (row["name"], row["head"], row["checkpoints"]) == ("arith", "arith-b2-000003", 5)
    header, line = espalier("models", "list").output.splitlines()
    assert header.split()[:3] == ["NAME", "SOURCE", "HEAD"]
    assert line.split()[:3] == ["arith", "image", "arith-b2-000003"]


@pytest.mark.usefixtures("tree")
def test_checkpoints_show_the_tree_the_head_and_who_moved_it(espalier: Command) -> None:
    drawn = espalier("models", "checkpoints", "arith").output.splitlines()
    assert drawn[-1] == (
        "> arith: arith-b2-000003 (Track, asked by kubectl-client-side-apply, "
        "advanced 2026-01-02T00:00:00Z)"
    )
    assert drawn[-2] == "o base"
    names = espalier("models", "checkpoints", "arith", "-q").output.split()
    assert names[0] == "arith-000001"
    rows = json.loads(espalier("models", "checkpoints", "arith", "--json").output)
    assert {row["name"]: row["parent"] for row in rows}["arith-b2-000002"] == "arith-000001"


@pytest.mark.usefixtures("tree")
def test_a_head_is_pinned_as_the_user_and_let_go(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    def asks() -> dict[str, Any]:
        answer = apiserver.kubectl("get", "-n", namespace, "ckhead", "arith", "-o", "json")
        return dict(json.loads(answer)["spec"])

    would = espalier("models", "head", "arith", "--set", "arith-000002", "--dry-run")
    assert would.output == "would pin arith to arith-000002, onPin Branch\n"
    assert asks()["mode"] == "Track"
    unasked = espalier("models", "head", "arith", "--set", "arith-000002")
    assert unasked.exit_code == 2
    assert "Give --yes" in unasked.output
    done = espalier("models", "head", "arith", "--set", "arith-000002", "--yes")
    assert done.exit_code == 0, done.output
    assert asks()["checkpointRef"] == {"name": "arith-000002"}
    assert asks()["onPin"] == "Branch"
    assert "asked by kubectl-patch" in done.output
    assert espalier("models", "head", "arith", "--track", "-y").exit_code == 0
    assert asks()["mode"] == "Track"


@pytest.mark.usefixtures("tree")
def test_a_head_of_git_is_left_to_git(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    label = "kustomize.toolkit.fluxcd.io/name=prod"
    apiserver.kubectl("label", "-n", namespace, "ckhead", "arith", label)
    done = espalier("models", "head", "arith", "--set", "arith-000002", "--yes", "--json")
    assert done.exit_code == 1
    said = json.loads(done.output)
    assert said["error"] == "conflict"
    assert "Git owns CheckpointHead arith through Flux (prod)" in said["message"]
    assert "espalier promote --git" in said["suggestion"]


@pytest.mark.usefixtures("tree")
def test_follow_ends_when_the_head_is_served_or_stalled(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    assert espalier("models", "head", "arith", "--follow", "--timeout", "120").exit_code == 0
    stuck = condition("Stalled", "CheckpointNotFound", "x does not exist")
    apply(apiserver, namespace, head(conditions=[stuck]))
    done = espalier("models", "head", "arith", "--follow", "--timeout", "120")
    assert done.exit_code == 1
    assert "arith is Stalled" in done.output


@pytest.mark.usefixtures("tree")
def test_a_fork_starts_from_the_head_or_a_named_checkpoint(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    dry = espalier("models", "fork", "arith", "--name", "next", "--dry-run", "--json")
    assert json.loads(dry.output) == {
        "name": "next",
        "source": "arith-b2-000003",
        "existed": False,
        "dry_run": True,
    }
    assert espalier("models", "list", "-q").output == "arith\n"
    done = espalier("models", "fork", "arith-000001", "--name", "next", "--yes")
    assert done.exit_code == 0, done.output
    answer = apiserver.kubectl("get", "-n", namespace, "tmodel", "next", "-o", "json")
    source = json.loads(answer)["spec"]["source"]
    assert source["checkpointRef"]["name"] == "arith-000001"
    again = espalier("models", "fork", "arith", "--name", "next", "--yes", "--json")
    assert (again.exit_code, json.loads(again.output)["error"]) == (1, "conflict")
    content = espalier("models", "fork", "arith", "--name", "next", "--if-not-exists")
    assert (content.exit_code, content.output) == (0, "next exists\n")


@pytest.mark.usefixtures("tree")
def test_a_run_is_created_suspended_and_resumed(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    order = ("run", "create", "mine", "--model", "arith", "--steps", "3", "--learning-rate", "1e-4")
    assert espalier(*order, "--dry-run").output.startswith("would create run mine")
    assert espalier("run", "why", "mine").exit_code == 2
    assert espalier(*order).exit_code == 0
    said = espalier("run", "why", "mine").output
    assert said.startswith("mine has not been seen by the operator yet")

    def spec() -> dict[str, Any]:
        answer = apiserver.kubectl("get", "-n", namespace, "trun", "mine", "-o", "json")
        return dict(json.loads(answer)["spec"])

    assert (spec()["driver"], spec()["learningRate"]) == ("Client", "1e-4")
    assert espalier("run", "suspend", "mine", "--yes").output == "suspend mine\n"
    assert spec()["suspend"] is True
    assert espalier("run", "resume", "mine", "--yes", "--json").exit_code == 0
    assert spec()["suspend"] is False


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("given", "spec"),
    [
        ((), {}),
        (("--learning-rate", "1e-4"), {"learningRate": "1e-4"}),
        (
            ("--loss", "ppo", "--group-size", "4", "--max-tokens", "64"),
            {"loss": {"name": "ppo"}, "groupSize": 4, "sampling": {"maxTokens": 64}},
        ),
        (
            ("--temperature", "0.9", "--optimizer-weight-decay", "0.1"),
            {"sampling": {"temperature": "0.9"}, "optimizer": {"weightDecay": "0.1"}},
        ),
    ],
)
def test_a_script_is_bound_by_what_is_given_and_by_nothing_else(
    espalier: Command, given: tuple[str, ...], spec: dict[str, Any]
) -> None:
    order = ("run", "create", "mine", "--model", "arith", "--steps", "3", "--dry-run", "--json")
    made = json.loads(espalier(*order, *given).output)["spec"]
    own = {"modelRef": {"name": "arith"}, "driver": "Client", "steps": 3}
    assert made == own | spec


@pytest.mark.usefixtures("tree")
def test_a_taskset_makes_a_run_of_the_runner_with_its_loss_and_seed(espalier: Command) -> None:
    order = ("run", "create", "mine", "--model", "arith", "--steps", "3", "--dry-run", "--json")
    task = ("--dataset", "chain_sum", "--size", "64", "--stop", "###", "--stop", "END")
    made = espalier(*order, *task, "--learning-rate", "1e-4")
    assert json.loads(made.output)["spec"] == {
        "modelRef": {"name": "arith"},
        "driver": "Runner",
        "steps": 3,
        "learningRate": "1e-4",
        "loss": {"name": "importance_sampling"},
        "sampling": {"stop": ["###", "END"]},
        "taskset": {"seed": 1, "size": 64, "reasoningGym": {"dataset": "chain_sum"}},
    }


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--groups-per-step", "4", "--seed", "2"), "--groups-per-step, --seed: a run without a"),
        (("--dataset", "chain_sum"), "the runner needs --learning-rate"),
        (("--dataset", "chain_sum", "--config-map", "a"), "--dataset and --config-map name two"),
    ],
)
def test_a_contradiction_is_told_before_anything_is_written(
    espalier: Command, given: tuple[str, ...], said: str
) -> None:
    order = ("run", "create", "mine", "--model", "arith", "--steps", "3")
    done = espalier(*order, *given)
    assert (done.exit_code, said in done.output) == (2, True)
    assert espalier("run", "why", "mine").exit_code == 2


@pytest.mark.usefixtures("tree")
def test_what_the_api_server_refuses_is_said_in_its_words(espalier: Command) -> None:
    order = ("run", "create", "mine", "--model", "arith", "--steps", "3")
    done = espalier(*order, "--learning-rate", "fast")
    assert done.exit_code == 1
    assert "spec.learningRate" in done.output


def test_the_logs_of_a_run_without_a_pod_point_to_why(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    apply(apiserver, namespace, training_run(condition("Ready", "Training")))
    done = espalier("run", "logs", "run")
    assert done.exit_code == 2
    assert "run run has no runner pod now. espalier run why run says why" in done.output


@pytest.mark.usefixtures("tree")
def test_a_checkpoint_is_shown_and_compared(espalier: Command) -> None:
    shown = espalier("checkpoint", "show", "arith-b2-000002").output
    assert "from    arith-000001" in shown
    assert "reward/mean  0.3" in shown
    compared = espalier("checkpoint", "diff", "arith-000003", "arith-b2-000003").output
    assert compared.splitlines()[:2] == [
        "arith-000003 -> arith-000001: 2 steps back",
        "arith-000001 -> arith-b2-000003: 2 steps on",
    ]
    assert "reward/mean  0.5 -> 0.75  +0.25" in compared
    content = json.loads(espalier("checkpoint", "show", "arith-000001", "--json").output)
    assert content["metrics"] == {"reward/mean": 0.1}


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("models", "checkpoints", "arit"), "Did you mean arith?"),
        (("models", "head", "xyz"), "There are: arith"),
        (("checkpoint", "show", "arith-00001"), "Did you mean arith-000001"),
        (("run", "why", "mine"), "There are none in this namespace"),
    ],
)
def test_a_name_that_is_not_there_gets_the_nearest(
    espalier: Command, command: tuple[str, ...], hint: str
) -> None:
    done = espalier(*command)
    assert done.exit_code == 2
    assert hint in done.output
    said = json.loads(espalier(*command, "--json").output)
    assert said["error"] == "not_found"
    assert hint in said["suggestion"]
