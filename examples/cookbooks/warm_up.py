"""Supervised warm-up, then reinforcement learning: a few right answers first, rewards after.

Cross entropy trains on answers that we give; the loop goes on from there with sampled ones.
"""

from __future__ import annotations

import asyncio

from curve import Curve
from sums import SUMS, Sum, answer

from espalier import Fit, FitConfig, Sampling, TrainingClient, TrajectoryPayload, TrajectorySample

SUPERVISED, STEPS = 6, 20


async def demonstration(client: TrainingClient, task: Sum) -> TrajectoryPayload:
    """The right answer to a sum, as tokens."""
    question = [{"role": "user", "content": task.id}]
    (asked,) = await client.sample(question, max_tokens=1)
    sample = TrajectorySample(
        prompt_token_ids=list(asked.prompt_token_ids),
        output_token_ids=await client.tokenize(str(task.a + task.b)),
    )
    return TrajectoryPayload(samples=[sample], reward=1.0)


async def train(curve: Curve) -> None:
    """Both parts; ``Fit`` counts the steps of the first as taken."""
    async with TrainingClient("tiny") as client:
        shown = [await demonstration(client, task) for task in SUMS]
        for step in range(SUPERVISED):
            seen = await client.forward_backward(shown, loss_fn="cross_entropy")
            await client.optim_step(learning_rate=3e-3)
            print(
                f"step {step + 1:3d}  loss {seen.metrics['loss:sum'] / len(shown):.3f}", flush=True
            )
        config = FitConfig(
            steps=STEPS,
            learning_rate=1e-2,
            group=8,
            tasks_per_step=8,
            sampling=Sampling(max_tokens=1),
        )
        await Fit(client, SUMS, answer, config, trackers=[curve]).fit_async()


if __name__ == "__main__":
    rewards = Curve()
    asyncio.run(train(rewards))
    rewards.end()
