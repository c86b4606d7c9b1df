"""Reinforcement with a tool: `rl.train` and the tool environment of Tinker's cookbook, over sums.

``python tools.py model_name=... log_path=...``, and any other field of `rl.train.Config`.
The renderer must know calls of tools, as qwen3_instruct does.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import chz
from tinker_cookbook import model_info
from tinker_cookbook.renderers import Message, Renderer, get_renderer, get_text_content
from tinker_cookbook.rl import train
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, RLDatasetBuilder
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.tool_use import ToolResult, build_agent_tool_env, simple_tool_result, tool

TASK = "Compute sums with the tool add, then answer with the number alone."
TURNS = 3


@tool
async def add(
    one: Annotated[int, "first number"], other: Annotated[int, "second number"]
) -> ToolResult:
    """Adds two whole numbers."""
    return simple_tool_result(str(one + other))


@dataclass
class Graded:
    """1 for the right answer after a call of the tool, 0.2 for a call, otherwise 0."""

    answer: int

    async def __call__(self, messages: list[Message]) -> tuple[float, dict[str, float]]:
        """The reward of an episode, and what it is made of."""
        called = any(message["role"] == "tool" for message in messages)
        right = get_text_content(messages[-1]).strip() == str(self.answer)
        reward = 1.0 if called and right else 0.2 if called else 0.0
        return reward, {"called": float(called), "right": float(right)}


@dataclass(frozen=True)
class Sum(EnvGroupBuilder):
    """One sum, for a group of episodes."""

    one: int
    other: int
    renderer: Renderer
    group_size: int

    async def make_envs(self) -> Sequence[Env]:
        """An environment with the tool for each episode."""
        asked = f"What is {self.one} + {self.other}?"
        given = self.renderer.create_conversation_prefix_with_tools([add.to_spec()], TASK)
        messages: list[Message] = [*given, {"role": "user", "content": asked}]
        graded = Graded(self.one + self.other)
        return [
            build_agent_tool_env(self.renderer, [add], list(messages), graded, max_turns=TURNS)
            for _ in range(self.group_size)
        ]


@dataclass(frozen=True)
class Sums(RLDataset):
    """Sums by the number of the batch, so that a resumed run goes on with its own."""

    renderer: Renderer
    batch_size: int
    group_size: int
    batches: int

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The sums of one step."""
        chance = random.Random(index)
        return [
            Sum(chance.randint(0, 99), chance.randint(0, 99), self.renderer, self.group_size)
            for _ in range(self.batch_size)
        ]

    def __len__(self) -> int:
        return self.batches


@chz.chz
class SumsBuilder(RLDatasetBuilder):
    """The data as a field of `rl.train.Config`."""

    model_name: str
    renderer_name: str
    batch_size: int = 4
    group_size: int = 4
    batches: int = 100

    async def __call__(self) -> tuple[RLDataset, None]:
        """The data to train on, and none for tests."""
        renderer = get_renderer(self.renderer_name, get_tokenizer(self.model_name))
        return Sums(renderer, self.batch_size, self.group_size, self.batches), None


def main(arguments: list[str]) -> None:
    """Trains as the arguments say."""
    (model,) = [text[len("model_name=") :] for text in arguments if text.startswith("model_name=")]
    renderer = model_info.get_recommended_renderer_name(model)
    blueprint = chz.Blueprint(train.Config).apply(
        {
            "recipe_name": "sums_with_a_tool",
            "renderer_name": renderer,
            "dataset_builder": SumsBuilder,
            "dataset_builder.model_name": model,
            "dataset_builder.renderer_name": renderer,
            "learning_rate": 1e-3,
            "max_tokens": 64,
            "lora_rank": 16,
        }
    )
    asyncio.run(train.main(blueprint.make_from_argv(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
