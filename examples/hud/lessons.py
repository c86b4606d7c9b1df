"""Tokens of what HUD's agent said, and lessons for a model that does not call tools by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hud import Run, TrainingClient
from hud.agents.types import AgentStep, Sample
from hud.train import TrajectoryPayload, TrajectorySample
from openai import AsyncOpenAI

# What HUD's agent needs to record tokens, and a bound for an answer that is no call.
COMPLETION = {"max_tokens": 48, "extra_body": {"return_token_ids": True}}


def samples(run: Run) -> list[Sample]:
    """The tokens of each of its turns, as they were sampled."""
    steps = run.trace.collect(lambda step: step if isinstance(step, AgentStep) else None)
    return [step.sample for step in steps if step.sample is not None]


def call(tool: str, **arguments: object) -> str:
    """A turn that thinks for a word and calls a tool, in the form that Qwen3 was trained on."""
    said = json.dumps({"name": tool, "arguments": arguments})
    return f"<think>\nok\n</think>\n\n<tool_call>\n{said}\n</tool_call><|im_end|>"


async def tokens_of(gateway: AsyncOpenAI, model: str, text: str) -> list[int]:
    """The tokens of a text by the model's own tokenizer."""
    answer = await gateway.completions.create(
        model=model,
        prompt=text,
        max_tokens=1,
        extra_body={"return_token_ids": True, "add_special_tokens": False},
    )
    return list(answer.choices[0].prompt_token_ids)


async def teach(
    trainer: TrainingClient,
    lessons: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    steps: int,
    learning_rate: float = 1e-2,
) -> list[float]:
    """Cross entropy on right answers, for a model that does not call tools by itself.

    Args:
        trainer: of the model.
        lessons: prompts with answers that are right after each, as tokens; equally many each.
        steps: of the optimizer.
        learning_rate: of the optimizer.

    Returns:
        The loss of each step, in nats an answer.
    """
    shown = [
        TrajectoryPayload(
            samples=[
                TrajectorySample(prompt_token_ids=list(prompt), output_token_ids=list(answer))
            ],
            reward=1.0,
        )
        for prompt, answers in lessons
        for answer in answers
    ]
    # A group has one prompt, which is computed once.
    group = len(lessons[0][1])
    losses = []
    for _ in range(steps):
        seen = await trainer.forward_backward(shown, loss_fn="cross_entropy", group_size=group)
        await trainer.optim_step(learning_rate=learning_rate)
        losses.append(seen.metrics["loss:sum"] / len(shown))
    return losses
