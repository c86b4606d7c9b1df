"""Shows the model of game_2048_tools.yaml how to call its tool, before it is rewarded for moves.

A small model that never saw a tool calls none: all games are worth the same, and no reward can
teach it. Cross entropy on a few calls, each direction alike, is enough for a start.

    kubectl apply -f player.yaml
    ESPALIER_GATEWAY_URL=… ESPALIER_TOKEN=… python teach_calls.py
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import yaml

from espalier import TrainingClient, TrajectoryPayload, TrajectorySample
from espalier.api.run.taskset import Taskset
from espalier.environments.game_2048 import MOVE, Game2048Environment

MANIFEST = Path(__file__).with_name("game_2048_tools.yaml")
DIRECTIONS = ("up", "down", "left", "right")
BOARDS, STEPS, LEARNING_RATE = 4, 8, 1e-3


def call(direction: str) -> str:
    """A call in Hermes' form, and the end of the turn."""
    said = json.dumps({"name": "move", "arguments": {"direction": direction}})
    return f"<tool_call>{said}</tool_call><|im_end|>"


def chats() -> list[list[dict[str, Any]]]:
    """Games at their beginning and after a first move, as the run will ask them."""
    run = yaml.safe_load(MANIFEST.read_text())
    taskset = Taskset.model_validate(run["spec"]["taskset"])
    assert taskset.game_2048 is not None
    games = Game2048Environment(taskset, taskset.game_2048)
    found = []
    for index in range(BOARDS):
        # From the end of the tasks: the run begins with others.
        asked = [message.wire() for message in games.task(games.size - 1 - index).messages]
        board = asked[-1]["content"].rpartition("\n\n")[2]
        moved = {"role": "assistant", "content": call(DIRECTIONS[index]).removesuffix("<|im_end|>")}
        found += [asked, [*asked, moved, {"role": "tool", "content": board}]]
    return found


async def teach() -> None:
    """A step of the optimizer on all chats, and again."""
    async with TrainingClient("player") as client:
        answers = [await client.tokenize(call(direction)) for direction in DIRECTIONS]
        shown = []
        for chat in chats():
            (asked,) = await client.sample(chat, max_tokens=1, extra={"tools": [MOVE]})
            prompt = list(asked.prompt_token_ids)
            shown += [
                TrajectoryPayload(
                    samples=[TrajectorySample(prompt_token_ids=prompt, output_token_ids=answer)],
                    reward=1.0,
                )
                for answer in answers
            ]
        for step in range(STEPS):
            # A group has one prompt, which is computed once.
            seen = await client.forward_backward(
                shown, loss_fn="cross_entropy", group_size=len(DIRECTIONS)
            )
            await client.optim_step(learning_rate=LEARNING_RATE)
            loss = seen.metrics["loss:sum"] / len(shown)
            print(f"step {step + 1}  {loss:.2f} nats a call", flush=True)


if __name__ == "__main__":
    asyncio.run(teach())
