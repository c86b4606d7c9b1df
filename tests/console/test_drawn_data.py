"""What the page computes before it draws: curves of branches and runs, and the places of nodes."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page
from tests.console.conftest import ROOT

# As a module of its own, in the browser that is to run it.
CALL = """async ([source, name, given]) => {
  const file = URL.createObjectURL(new Blob([source], {type: 'text/javascript'}));
  return (await import(file))[name](...given);
}"""


async def call(page: Page, packages: Path, module: str, name: str, *given: Any) -> Any:
    """What a function of the page's sources returns."""
    source = ROOT / f"operator/console/src/{module}.ts"
    command = [packages / "node_modules/.bin/esbuild", source, "--bundle", "--format=esm"]
    built = await asyncio.to_thread(subprocess.check_output, command, text=True)
    return await page.evaluate(CALL, [built, name, [*given]])


def line(branch: str, runs: list[str]) -> dict[str, Any]:
    steps = [*range(1, len(runs) + 1)]
    names = [f"{branch}-{step}" for step in steps]
    unmeasured = [None] * len(runs)
    points = {"checkpoints": names, "runs": runs, "steps": steps, "values": steps}
    return {"branch": branch, **points, "low": unmeasured, "high": unmeasured}


async def test_a_smoothed_curve_is_a_mean_that_forgets_and_keeps_gaps(
    page: Page, packages: Path
) -> None:
    smooth = await call(page, packages, "curve_data", "smoothed", [1, None, 3], 0.5)
    assert smooth == [1, None, pytest.approx(7 / 3)]
    assert await call(page, packages, "curve_data", "smoothed", [1, None, 3], 0) == [1, None, 3]


async def test_each_run_of_a_branch_is_a_curve_and_a_branch_is_of_the_run_that_grew_it(
    page: Page, packages: Path
) -> None:
    lines = [line("main", ["one", "one", "two"]), line("b2", ["one", "two", "two"])]
    series = {"metric": "reward/mean", "lines": lines}
    labels = await call(page, packages, "curve_data", "labels", series)
    assert labels == ["main · one", "main · two", "b2 · two"]


def node(name: str, parent: str, step: int, branch: str = "main") -> dict[str, Any]:
    rest = {"term": 1, "run": "", "created": "", "reward": None, "evaluations": [], "heads": []}
    place = {"name": name, "parent": parent, "step": step, "branch": branch, "superseded": False}
    return rest | place


async def test_a_branch_has_a_lane_of_its_own_and_a_deleted_parent_leaves_a_gap(
    page: Page, packages: Path
) -> None:
    tree = [node("a", "", 1), node("c", "b", 3), node("d", "a", 2, "b2"), node("e", "d", 3, "b2")]
    drawn = await call(page, packages, "tree_layout", "layout", tree, 1000)
    places = {one["checkpoint"]["name"]: one for one in drawn["nodes"]}
    assert places["a"]["y"] == places["c"]["y"] < places["d"]["y"] == places["e"]["y"]
    assert places["a"]["x"] < places["d"]["x"] < places["c"]["x"] == places["e"]["x"]
    assert [edge["gap"] for edge in drawn["edges"]] == [False, True, False, False]
    assert [places[name]["from"] for name in "acde"] == ["", "a", "a", "d"]
