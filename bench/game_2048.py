"""What a game of 2048 pays, and to whom: how much of it play decides, and how much the tiles do.

PYTHONPATH=operator:. python -m bench.game_2048
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import fmean, pstdev

from espalier.environments.board_2048 import DIRECTIONS, Board, slid

GROUP, GAMES, LOOKED_AT = 8, 60, 4
# Turns and the tile to reach.
RULES = ((3, 8), (6, 16), (12, 32), (24, 64))

# The direction of the next move, for a board with so many turns left.
Player = Callable[[Board, int], str]


def at_random(_board: Board, _left: int) -> str:
    """Any direction, as a model does that never looks."""
    return random.choice(DIRECTIONS)


def ahead(board: Board, left: int) -> str:
    """The direction with the highest tile after two moves, over a few draws of tiles."""
    return max(DIRECTIONS, key=lambda direction: _worth(board, direction, min(left, 2)))


def _worth(board: Board, direction: str, moves: int) -> float:
    after = slid(board.cells, direction)
    if after == board.cells:
        return 0.0
    found = []
    for _ in range(LOOKED_AT if moves > 1 else 1):
        tried = Board(board.cells, random.Random(random.random()))
        tried.move(direction)
        later = [_worth(tried, other, moves - 1) for other in DIRECTIONS] if moves > 1 else []
        found.append(max(math.log2(tried.highest), *later, 0.0))
    return fmean(found)


def paid(player: Player, game: int, rollout: int, turns: int, target: int) -> float:
    """As the environment pays, without penalties."""
    board = Board.dealt(game, game * GROUP + rollout)
    for turn in range(turns):
        if board.over or board.highest >= target:
            break
        board.move(player(board, turns - turn))
    return min(1.0, math.log2(board.highest) / math.log2(target))


def main() -> None:
    """A line for each kind of game and player."""
    random.seed(0)
    print("turns  target  player     mean   deviation within a group")
    for turns, target in RULES:
        for name, player in (("random", at_random), ("two ahead", ahead)):
            groups = [
                [paid(player, game, place, turns, target) for place in range(GROUP)]
                for game in range(GAMES)
            ]
            mean, spread = fmean(map(fmean, groups)), fmean(map(pstdev, groups))
            print(f"{turns:5}  {target:6}  {name:9}  {mean:.3f}  {spread:.3f}")


if __name__ == "__main__":
    main()
