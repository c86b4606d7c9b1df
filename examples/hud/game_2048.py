"""2048 for HUD's unmodified agent: each move is a call of an MCP tool, several turns a game.

The environment is served in this process, one for each game. The agent's prompts go on from the
very tokens of the turns before; boards are observations and are never trained on.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from board import MOVES, Board
from fastmcp import FastMCP
from hud import Environment, Run, TrainingClient
from hud.agents import create_agent
from hud.agents.types import ToolStep
from hud.eval import Job, LocalRuntime, Taskset
from hud.graders import EvaluationResult
from lessons import COMPLETION, samples
from serving import serve

KEYS = {direction: key for key, direction in MOVES.items()}
# Exponent of the tile, and number of moves, that are worth a reward of 1.
TARGET, ENOUGH = 5, 8

env = Environment("game-2048")
tools = FastMCP("game-2048")
serve(env, tools)
# This module is loaded anew for every game.
game: list[Board] = []
moved: list[str] = []


@tools.tool
def move(direction: str) -> str:
    """Slide the tiles up, down, left or right."""
    if not game[0].move(KEYS.get(direction, "")):
        return f"nothing moved\n{game[0]}"
    moved.append(direction)
    return str(game[0])


@env.template()
async def play(seed: int = 0) -> AsyncIterator[object]:
    """A game; the same seed gives the same tiles."""
    game[:], moved[:] = [Board(seed)], []
    yield f"Play 2048.\n{game[0]}"
    reached = min(1.0, (game[0].highest - 1) / (TARGET - 1))
    reward = 0.5 * reached + 0.5 * min(1.0, len(moved) / ENOUGH)
    yield EvaluationResult(reward=reward, info={"moved": list(moved), "board": str(game[0])})


RUNTIME = LocalRuntime(Path(__file__), env="env")


async def games(model: str, job: Job, seeds: range, moves: int) -> list[Run]:
    """A group of each seed's games, as many as the job says; of at most so many moves."""
    agent = create_agent(model, max_steps=moves, completion_kwargs=COMPLETION)
    before = len(job.runs)
    tasks = Taskset("2048", [play(seed=seed) for seed in seeds])
    await tasks.run(agent, runtime=RUNTIME, job=job, max_concurrent=8, rollout_timeout=300)
    return job.runs[before:]


def told(run: Run) -> str:
    """Each call of a game, and the board that it came to."""
    steps = run.trace.collect(lambda step: step if isinstance(step, ToolStep) else None)
    calls = [f"{step.call.name}({step.call.arguments})" for step in steps]
    boards = ["".join(part.text for part in step.result.content) for step in steps]
    return "\n".join(
        f"  {call:32} {board.replace(chr(10), ' ')}"
        for call, board in zip(calls, boards, strict=True)
    )


async def main(model: str, steps: int, group: int, moves: int, learning_rate: float) -> None:
    """Plays, trains on what was played, and prints a game, and a line for each step."""
    trainer = TrainingClient(model)
    job = await Job.start("2048", group=group)
    for number in range(steps):
        runs = await games(model, job, range(2 * number, 2 * number + 2), moves)
        if not number:
            print(f"the longest game:\n{told(max(runs, key=lambda run: len(samples(run))))}")
        step = await trainer.step(runs, group_size=group, learning_rate=learning_rate)
        turns = [len(samples(run)) for run in runs]
        calls = sum(len(run.grade.info["moved"]) for run in runs)
        print(
            f"{step.checkpoint_id}  reward {sum(run.reward for run in runs) / len(runs):.3f}  "
            f"{len(runs)} games, {sum(turns)} turns, {calls} moves",
            flush=True,
        )


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("model")
    given.add_argument("--steps", type=int, default=10)
    given.add_argument("--group", type=int, default=8)
    given.add_argument("--moves", type=int, default=8)
    given.add_argument("--learning-rate", type=float, default=1e-5)
    asyncio.run(main(**vars(given.parse_args())))
