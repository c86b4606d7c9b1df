"""Connect Four in self-play with HUD's unmodified agent: two trajectories a game are trained.

The agent plays one side by calls of an MCP tool, many turns a game: a ``Run``. Inside the tool the
same model is asked for the other side's moves, each from a prompt of its own: what it said comes
back with the grade, and is sent inline. A pair is a group, so that what one side wins the other
loses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastmcp import FastMCP
from four import SIDES, Four
from hud import Environment, Run, TrainingClient
from hud.agents import create_agent
from hud.eval import Job, LocalRuntime, Taskset
from hud.graders import EvaluationResult
from hud.settings import settings
from hud.train import TrajectoryPayload, TrajectorySample
from lessons import COMPLETION
from openai import AsyncOpenAI
from serving import serve

env = Environment("connect-four")
tools = FastMCP("connect-four")
serve(env, tools)
DROP = {
    "type": "function",
    "function": {
        "name": "drop",
        "description": "Drop a disc into a column from 0 to 6.",
        "parameters": {
            "properties": {"column": {"type": "integer"}},
            "required": ["column"],
            "type": "object",
        },
    },
}


class Table:
    """A game and the other side, which is the same model. This module is loaded for every game."""

    def __init__(self, model: str) -> None:
        self.model, self.four, self.said = model, Four(), list[dict[str, Any]]()
        # The side that made an illegal move; it has lost.
        self.foul = ""
        # Not HUD's own: that one would put these completions into the agent's trace.
        self.gateway = AsyncOpenAI(api_key=settings.api_key, base_url=settings.hud_gateway_url)

    @property
    def over(self) -> bool:
        """Whether nobody is to move."""
        return self.four.over or bool(self.foul)

    def play(self, column: object) -> None:
        """A move of the side whose turn it is."""
        side = self.four.side
        if not isinstance(column, int) or not self.four.drop(column):
            self.foul = side

    async def answer(self) -> None:
        """A move of the other side."""
        asked = [{"role": "user", "content": opening(self.four)}]
        reply = await self.gateway.chat.completions.create(
            model=self.model, messages=asked, tools=[DROP], logprobs=True, **COMPLETION
        )
        choice = reply.choices[0]
        self.said.append(
            {
                "prompt_token_ids": choice.prompt_token_ids,
                "output_token_ids": choice.token_ids,
                "output_logprobs": [token.logprob for token in choice.logprobs.content],
            }
        )
        self.play(_column(choice.message.tool_calls or []))

    def reward(self, side: str) -> float:
        """1 for having won, 0.5 for a draw; who makes an illegal move or stops playing has lost."""
        lost = self.foul or ("" if self.over else self.four.side)
        if lost:
            return float(lost != side)
        return float(self.four.winner == side) if self.four.winner else 0.5


table: list[Table] = []


def opening(four: Four) -> str:
    """What a side is told that sees the board for the first time."""
    return f"Play Connect Four as {four.side}.\n{four}"


def _column(calls: list[Any]) -> object:
    try:
        return json.loads(calls[0].function.arguments)["column"]
    except (LookupError, TypeError, ValueError):
        return None


@tools.tool(description=DROP["function"]["description"])
async def drop(column: int) -> str:
    """The agent's move, and the answer of the other side."""
    here = table[0]
    if here.over:
        return f"the game is over\n{here.four}"
    here.play(column)
    if not here.over:
        await here.answer()
    return str(here.four)


@env.template()
async def play(model: str, seed: int = 0) -> AsyncIterator[object]:
    """A game; where the seed is odd the other side begins."""
    table[:] = [Table(model)]
    if seed % 2:
        await table[0].answer()
    here = table[0]
    yield opening(here.four)
    yield EvaluationResult(
        reward=here.reward(SIDES[seed % 2]),
        info={"other": here.said, "board": str(here.four)},
    )


RUNTIME = LocalRuntime(Path(__file__), env="env")


async def games(model: str, job: Job, seeds: range, moves: int = 21) -> list[Run]:
    """A game of each seed, of at most so many moves of the agent's."""
    agent = create_agent(model, max_steps=moves, completion_kwargs=COMPLETION)
    before = len(job.runs)
    tasks = Taskset("connect-four", [play(model=model, seed=seed) for seed in seeds])
    await tasks.run(agent, runtime=RUNTIME, job=job, max_concurrent=8, rollout_timeout=300)
    return job.runs[before:]


def sides(run: Run) -> list[Run | TrajectoryPayload]:
    """The run, and the other side with what the run left of the reward.

    Neither where the other side never got to move: there is no pair to compare.
    """
    said = [TrajectorySample(**turn) for turn in run.grade.info["other"]]
    return [run, TrajectoryPayload(samples=said, reward=1.0 - run.reward)] if said else []


async def main(model: str, steps: int, games_a_step: int, learning_rate: float) -> None:
    """Plays, trains on both sides, and prints a line for each step."""
    trainer = TrainingClient(model)
    job = await Job.start("connect-four", group=1)
    for number in range(steps):
        seeds = range(number * games_a_step, (number + 1) * games_a_step)
        both = [side for run in await games(model, job, seeds) for side in sides(run)]
        step = await trainer.step(both, loss_fn="ppo", group_size=2, learning_rate=learning_rate)
        won = sum(run.reward for run in both if isinstance(run, Run))
        print(f"{step.checkpoint_id}  {len(both)} sides, the agent won {won:g}", flush=True)


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("model")
    given.add_argument("--steps", type=int, default=10)
    given.add_argument("--games-a-step", type=int, default=8)
    given.add_argument("--learning-rate", type=float, default=1e-5)
    asyncio.run(main(**vars(given.parse_args())))
