"""The board of 2048: 4 by 4 tiles; a seed draws those that appear. Pure."""

from __future__ import annotations

import random

SIDE = 4
DIRECTIONS = ("up", "down", "left", "right")
# Of ten tiles that appear one is a 4.
_FOURS = 0.1

Cells = tuple[tuple[int, ...], ...]


class Board:
    """One game. Tiles are their numbers, 0 is empty.

    Args:
        cells: rows from the top.
        spawns: draws the tiles that appear.
    """

    def __init__(self, cells: Cells, spawns: random.Random) -> None:
        self.cells = cells
        self._spawns = spawns

    @classmethod
    def dealt(cls, task: int, rollout: int) -> Board:
        """Two tiles by the seed of the task; those that appear later are by that of the rollout."""
        empty = tuple((0,) * SIDE for _ in range(SIDE))
        dealt = cls(empty, random.Random(task))
        dealt._spawn()
        dealt._spawn()
        return cls(dealt.cells, random.Random(rollout))

    def __str__(self) -> str:
        width = len(str(self.highest))
        rows = [" ".join(f"{tile or '.':>{width}}" for tile in row) for row in self.cells]
        return "\n".join(rows)

    @property
    def highest(self) -> int:
        """The largest tile."""
        return max(max(row) for row in self.cells)

    @property
    def over(self) -> bool:
        """Whether no move would change the board."""
        return all(slid(self.cells, direction) == self.cells for direction in DIRECTIONS)

    def move(self, direction: str) -> bool:
        """Slides the tiles and adds one; False, and no change, where nothing would slide."""
        after = slid(self.cells, direction)
        if after == self.cells:
            return False
        self.cells = after
        self._spawn()
        return True

    def _spawn(self) -> None:
        places = [(r, c) for r in range(SIDE) for c in range(SIDE) if not self.cells[r][c]]
        row, column = self._spawns.choice(places)
        tile = 4 if self._spawns.random() < _FOURS else 2
        rows = [list(line) for line in self.cells]
        rows[row][column] = tile
        self.cells = tuple(map(tuple, rows))


def slid(cells: Cells, direction: str) -> Cells:
    """The board after its tiles slid, before one appears; the same where none can.

    Raises:
        ValueError: that is no direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"{direction!r} is none of {', '.join(DIRECTIONS)}")
    if direction in ("up", "down"):
        turned = tuple(zip(*cells, strict=True))
        return tuple(zip(*_rows(turned, back=direction == "down"), strict=True))
    return _rows(cells, back=direction == "right")


def _rows(cells: Cells, *, back: bool) -> Cells:
    if back:
        return tuple(_left(row[::-1])[::-1] for row in cells)
    return tuple(_left(row) for row in cells)


def _left(row: tuple[int, ...]) -> tuple[int, ...]:
    """A row slid to its begin; of equal neighbours each pair merges once, the first ones first."""
    tiles = [tile for tile in row if tile]
    merged: list[int] = []
    place = 0
    while place < len(tiles):
        pair = tiles[place : place + 2]
        doubled = len(pair) == 2 and pair[0] == pair[1]
        merged.append(pair[0] * 2 if doubled else pair[0])
        place += 2 if doubled else 1
    return (*merged, *(0,) * (len(row) - len(merged)))
