"""2048: many turns with a tool. The model answers each board with a move, + - * or =.

The boards are observations: they are in the prompts, and no gradient flows into them. Each prompt
goes on from the very tokens of the turn before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from board import Board
from curve import Curve

from espalier import Fit, FitConfig, Sampling, Session, TrainingClient

STEPS, MOVES = 10, 12
# Exponent of the tile that is worth a reward of 1.
TARGET = 5


@dataclass(frozen=True)
class Game:
    """A game by the seed of its tiles: all of a group see the same ones."""

    seed: int

    @property
    def id(self) -> str:
        """The seed."""
        return f"game-{self.seed}"


async def play(task: Game, session: Session) -> float:
    """Up to twelve moves; a move that is none ends the game."""
    board = Board(task.seed)
    session.stop("max_steps")
    for _ in range(MOVES):
        turn = await session.say(str(board))
        with session.phase("moving"):
            if not board.move(turn.text.strip()[:1]):
                session.stop("malformed_tool_call")
                break
    session.metadata["board"] = str(board)
    moves = len(session.rollout.turns) - (session.rollout.stop_reason == "malformed_tool_call")
    # The tile that was reached, and a little for every legal move on the way there.
    reached = min(1.0, max(0.0, (board.highest - 1) / (TARGET - 1)))
    return 0.5 * reached + 0.5 * moves / MOVES


def main() -> None:
    """Trains the model ``tiny``."""
    curve = Curve()
    config = FitConfig(
        steps=STEPS,
        learning_rate=1e-2,
        group=8,
        tasks_per_step=4,
        sampling=Sampling(max_tokens=1),
        max_model_length=512,
        rollout_timeout=300,
    )
    games = [Game(seed) for seed in range(64)]
    with TrainingClient("tiny") as client:
        Fit(client, games, play, config, trackers=[curve]).fit()
    curve.end()


if __name__ == "__main__":
    main()
