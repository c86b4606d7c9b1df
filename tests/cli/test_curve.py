"""The curve of a metric: one line a branch, in the terminal and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.checkpoints import manifests

from espalier.api.checkpoint import Checkpoint
from espalier.cli.curve import as_png, in_terminal
from espalier.core.lineage.curve_lines import CurveLine, lines

MAIN = ("arith-000002", "arith-000003")
BRANCH = ("arith-b2-000002", "arith-b2-000003")


@pytest.fixture
def checkpoints() -> list[Checkpoint]:
    return [Checkpoint.model_validate(manifest) for manifest in manifests()]


def test_a_branch_starts_where_it_grew_from(checkpoints: list[Checkpoint]) -> None:
    assert lines(checkpoints[::-1], "reward/mean") == [
        CurveLine(
            "main", ("arith-000001", "arith-000002", "arith-000003"), (1, 2, 3), (0.1, 0.25, 0.5)
        ),
        CurveLine(
            "b2",
            ("arith-000001", "arith-b2-000002", "arith-b2-000003"),
            (1, 2, 3),
            (0.1, 0.3, 0.75),
        ),
    ]


def test_a_metric_that_no_checkpoint_has_gives_no_line(checkpoints: list[Checkpoint]) -> None:
    assert lines(checkpoints, "reward/median") == []


def test_the_terminal_shows_title_branches_and_steps(checkpoints: list[Checkpoint]) -> None:
    drawn = in_terminal(lines(checkpoints, "reward/mean"), "reward/mean of arith")
    assert "reward/mean of arith" in drawn
    assert "main" in drawn
    assert "b2" in drawn
    assert "\x1b" not in drawn
    assert all(len(line) <= 80 for line in drawn.splitlines())


def test_drawing_twice_gives_the_same(checkpoints: list[Checkpoint]) -> None:
    found = lines(checkpoints, "reward/mean")
    assert in_terminal(found, "once") == in_terminal(found, "once")


def test_the_picture_is_a_png(checkpoints: list[Checkpoint], tmp_path: Path) -> None:
    path = tmp_path / "reward.png"
    as_png(lines(checkpoints, "reward/mean"), "reward/mean of arith", path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size > 10_000
