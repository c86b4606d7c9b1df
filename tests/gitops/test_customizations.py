"""Argo CD's own Lua engine agrees with the test files that lie beside our scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.gitops_customizations import LUA, PATCH, patch
from tests.gitops.customizations import action, ask, discovery, health

HEALTH = LUA / "_"
ACTIONS = LUA / "TrainingRun/actions"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_health_is_as_the_test_file_says() -> None:
    tests = read(HEALTH / "health_test.yaml")["tests"]
    answers = ask([health(read(HEALTH / test["inputPath"])) for test in tests])
    got = {t["inputPath"]: a.get("health", a) for t, a in zip(tests, answers, strict=True)}
    assert got == {test["inputPath"]: test["healthStatus"] for test in tests}


def test_every_example_object_is_judged() -> None:
    named = {Path(test["inputPath"]).name for test in read(HEALTH / "health_test.yaml")["tests"]}
    assert named == {file.name for file in (HEALTH / "testdata").iterdir()}


def test_actions_are_offered_as_the_test_file_says() -> None:
    tests = read(ACTIONS / "action_test.yaml")["discoveryTests"]
    answers = ask([discovery(read(ACTIONS / test["inputPath"])) for test in tests])
    for test, answer in zip(tests, answers, strict=True):
        offered = {a["name"]: a.get("disabled", False) for a in answer["actions"]}
        assert offered == {a["name"]: a["disabled"] for a in test["result"]}


def test_actions_write_what_the_test_file_says_and_nothing_but_suspend() -> None:
    tests = read(ACTIONS / "action_test.yaml")["actionTests"]
    assert {t["action"] for t in tests} == {file.parent.name for file in ACTIONS.glob("*/*.lua")}
    answers = ask([action(t["action"], read(ACTIONS / t["inputPath"])) for t in tests])
    for test, answer in zip(tests, answers, strict=True):
        (impacted,) = answer["impacted"]
        assert impacted == {
            "operation": "patch",
            "object": read(ACTIONS / test["expectedOutputPath"]),
        }
        before, after = read(ACTIONS / test["inputPath"]), impacted["object"]
        assert before["spec"].pop("suspend", None) != after["spec"].pop("suspend", None)
        assert before == after


@pytest.mark.parametrize("broken", [{}, {"status": {}}, {"status": {"conditions": []}}])
def test_an_object_that_lacks_everything_is_progressing(broken: dict[str, Any]) -> None:
    (answer,) = ask([health({"metadata": {"name": "x", "generation": 1}, **broken})])
    assert answer["health"]["status"] == "Progressing"


def test_the_patch_of_argocd_cm_is_made_of_these_scripts() -> None:
    assert PATCH.read_text() == patch(), "run dev/gitops_customizations.py"
    data = read(PATCH)["data"]
    assert data["resource.customizations.health.espalier.dev_CheckpointHead"] == (
        (HEALTH / "health.lua").read_text()
    )
