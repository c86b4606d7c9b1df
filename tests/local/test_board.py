"""The rules of the game that a cookbook plays."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "examples" / "cookbooks" / "board.py"


def board() -> Any:
    spec = importlib.util.spec_from_file_location("cookbook_board", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "slid"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 1, 0, 1], [2, 0, 0, 0]),
        ([1, 1, 1, 1], [2, 2, 0, 0]),
        ([1, 1, 2, 0], [2, 2, 0, 0]),
        ([3, 1, 1, 3], [3, 2, 3, 0]),
    ],
)
def test_equal_neighbours_merge_once(line: list[int], slid: list[int]) -> None:
    assert board()._slide(line) == slid


@pytest.mark.parametrize(
    ("key", "row", "column"), [("*", 0, 0), ("=", 0, 3), ("+", 0, 0), ("-", 3, 0)]
)
def test_tiles_slide_to_the_side_of_the_move(key: str, row: int, column: int) -> None:
    game = board().Board(0)
    game.cells = [[0] * 4 for _ in range(4)]
    game.cells[1][1] = 5
    assert game.move(key)
    found = [(r, c) for r in range(4) for c in range(4) if game.cells[r][c] == 5]
    assert len(found) == 1
    assert (found[0][0] if key in "+-" else row) == row
    assert (found[0][1] if key in "*=" else column) == column
    assert sum(cell > 0 for line in game.cells for cell in line) == 2


def test_a_move_that_is_none_or_moves_nothing_is_refused() -> None:
    game = board().Board(0)
    game.cells = [[1, 0, 0, 0], *([0] * 4 for _ in range(3))]
    assert not game.move("7")
    assert not game.move("*")
    assert game.move("=")
    assert game.highest == 1
