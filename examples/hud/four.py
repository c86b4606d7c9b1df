"""Connect Four: seven columns of six, two sides, a draw when the board is full."""

from __future__ import annotations

ROWS, COLUMNS, LINE = 6, 7, 4
EMPTY, SIDES = ".", "XO"
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


class Four:
    """A game; X begins."""

    def __init__(self) -> None:
        self.columns = [""] * COLUMNS
        self.winner = ""

    def __str__(self) -> str:
        rows = range(ROWS - 1, -1, -1)
        return "\n".join("".join(self._at(c, r) for c in range(COLUMNS)) for r in rows)

    @property
    def side(self) -> str:
        """Whose turn it is."""
        return SIDES[sum(map(len, self.columns)) % 2]

    @property
    def over(self) -> bool:
        """Whether a side has won, or nothing is left to be filled."""
        return bool(self.winner) or all(len(column) == ROWS for column in self.columns)

    def drop(self, column: int) -> bool:
        """A disc of the side whose turn it is; False where there is no such column or no room."""
        if self.over or not 0 <= column < COLUMNS or len(self.columns[column]) == ROWS:
            return False
        side = self.side
        self.columns[column] += side
        if any(self._line(column, len(self.columns[column]) - 1, d) for d in DIRECTIONS):
            self.winner = side
        return True

    def _at(self, column: int, row: int) -> str:
        inside = 0 <= column < COLUMNS and 0 <= row < len(self.columns[column])
        return self.columns[column][row] if inside else EMPTY

    def _line(self, column: int, row: int, direction: tuple[int, int]) -> bool:
        """Whether the disc there stands in a line of four in this direction."""
        side, count = self._at(column, row), 1
        for sign in (1, -1):
            c, r = column + sign * direction[0], row + sign * direction[1]
            while self._at(c, r) == side:
                c, r, count = c + sign * direction[0], r + sign * direction[1], count + 1
        return count >= LINE
