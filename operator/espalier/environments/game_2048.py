"""2048 as an environment: the model answers each board with a move, in words or by a tool."""

from __future__ import annotations

import math
import re
from typing import Any

from espalier.api.meta import decimal
from espalier.api.run.environment_sources import Game2048
from espalier.client.completion import Completion
from espalier.environments.board_2048 import DIRECTIONS, Board
from espalier.environments.conversation import answers, call, tool, turn
from espalier.environments.generated import Generated
from espalier.environments.tasks import Task, rollout_seed, task_seed, within
from espalier.loop.session import Session

RULES = (
    "This is the game 2048. A move slides all tiles to one side; equal tiles that meet become one "
    "of twice the number, and a new tile appears. Reach the tile {target}."
)
IN_WORDS = "Answer with one word: up, down, left or right."
BY_TOOL = "Call the tool move."
MOVE = tool(
    "move",
    "Slides all tiles of the board to one side.",
    {"direction": {"type": "string", "enum": list(DIRECTIONS)}},
)
INVALID = "That is no move, or moves nothing."

_WORD = re.compile(r"\b(up|down|left|right)\b", re.IGNORECASE)


class Game2048Environment(Generated[Game2048]):
    """Games by the seed of their first tiles, which all rollouts of a task have in common."""

    NAME = "game2048"
    VERSION = 1

    def task(self, index: int) -> Task:
        """A game; its first message is the rules with the board."""
        name = f"game2048/target-{self._source.target}/{within(index, self.size)}"
        board = self._board(name, 0)
        rules = RULES.replace("{target}", str(self._source.target))
        asked = f"{rules} {BY_TOOL if self._by_tool else IN_WORDS}\n\n{board}"
        return Task(name, self._asked(asked))

    async def rollout(self, task: Task, session: Session) -> float:
        """Plays until the target, the end of the board, or a limit.

        A move that is none, or moves nothing, leaves the board as it is and costs the penalty; at
        the limit of them the game ends.
        """
        source = self._source
        board = self._board(task.id, session.rollout.rollout_idx)
        session.tools = [MOVE] if self._by_tool else ()
        session.stop("max_steps")
        said: list[Any] = [message.wire() for message in task.messages]
        moves = invalid = 0
        for _ in range(source.max_turns):
            completion = await turn(session, *said)
            if completion is None:
                break
            direction = self._direction(completion)
            moved = direction is not None and board.move(direction)
            moves, invalid = moves + moved, invalid + (not moved)
            if reason := self._ended(board, invalid):
                session.stop(reason)
                break
            shown = str(board) if moved else f"{INVALID} {BY_TOOL if self._by_tool else IN_WORDS}"
            said = answers(completion, shown if moved else f"{shown}\n\n{board}")
        session.metadata.update(
            board=str(board), highest=board.highest, moves=moves, invalid_moves=invalid
        )
        return max(0.0, self._reached(board) - decimal(source.invalid_moves.penalty) * invalid)

    def _board(self, task: str, rollout: int) -> Board:
        seed = self._spec.seed
        return Board.dealt(task_seed(seed, task), rollout_seed(seed, task, rollout))

    def _direction(self, completion: Completion) -> str | None:
        if self._by_tool:
            made = call(completion, ["move"])
            wanted = made[1].get("direction") if made is not None else None
            return wanted if wanted in DIRECTIONS else None
        found = _WORD.search(completion.text)
        return found[1].lower() if found is not None else None

    def _ended(self, board: Board, invalid: int) -> str:
        if board.highest >= self._source.target:
            return "done"
        if board.over:
            return "game_over"
        return "malformed_tool_call" if invalid >= self._source.invalid_moves.limit else ""

    def _reached(self, board: Board) -> float:
        """0 for a tile of 1, 1 for the target."""
        return min(1.0, math.log2(board.highest) / math.log2(self._source.target))
