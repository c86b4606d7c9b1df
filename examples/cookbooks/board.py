"""The game 2048 on a board of 4 by 4: tiles are exponents of 2, 0 is empty."""

from __future__ import annotations

import random

SIDE = 4
MOVES = {"+": "up", "-": "down", "*": "left", "=": "right"}


class Board:
    """One game; the same seed gives the same tiles."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.cells = [[0] * SIDE for _ in range(SIDE)]
        self._spawn()
        self._spawn()

    def __str__(self) -> str:
        return "\n".join("".join(str(cell) for cell in row) for row in self.cells)

    @property
    def highest(self) -> int:
        """Exponent of the largest tile."""
        return max(max(row) for row in self.cells)

    def move(self, key: str) -> bool:
        """Slides the tiles; False when the key is none, or nothing would move."""
        if key not in MOVES:
            return False
        before = [row[:] for row in self.cells]
        rows = self._lines(MOVES[key])
        self._put(MOVES[key], [_slide(row) for row in rows])
        if self.cells == before:
            return False
        self._spawn()
        return True

    def _lines(self, direction: str) -> list[list[int]]:
        """Rows or columns, each starting at the side that the tiles slide to."""
        across = direction in ("left", "right")
        lines = self.cells if across else [list(column) for column in zip(*self.cells, strict=True)]
        return [line[::-1] if direction in ("right", "down") else line[:] for line in lines]

    def _put(self, direction: str, lines: list[list[int]]) -> None:
        lines = [line[::-1] if direction in ("right", "down") else line for line in lines]
        across = direction in ("left", "right")
        self.cells = lines if across else [list(row) for row in zip(*lines, strict=True)]

    def _spawn(self) -> None:
        empty = [(r, c) for r in range(SIDE) for c in range(SIDE) if not self.cells[r][c]]
        if empty:
            row, column = self._random.choice(empty)
            self.cells[row][column] = 1


def _slide(line: list[int]) -> list[int]:
    tiles = [tile for tile in line if tile]
    merged: list[int] = []
    while tiles:
        tile = tiles.pop(0)
        if tiles and tiles[0] == tile:
            tiles.pop(0)
            tile += 1
        merged.append(tile)
    return merged + [0] * (SIDE - len(merged))
