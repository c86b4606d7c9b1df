"""Arithmetic with a loss of our own: double-sided importance sampling.

A token whose ratio of new to old probability has left [1 - 0.2, 1 + 0.28] gets no gradient at all.
"""

from __future__ import annotations

import asyncio
from statistics import fmean

import torch
from curve import Curve
from sums import SUMS, answer

from espalier import DatumTensors, Job, Sampling, TrainingClient

STEPS, TASKS, GROUP = 24, 8, 8
LOW, HIGH = 1 - 0.2, 1 + 0.28


def double_sided(
    data: list[DatumTensors], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """The mean over trained tokens of ratio times advantage, negated; and what was masked."""
    rewards: dict[int | None, list[float]] = {}
    for datum in data:
        rewards.setdefault(datum.group_idx, []).append(datum.reward)
    total, trained, masked = torch.zeros(()), 0.0, 0.0
    for datum, new in zip(data, logprobs, strict=True):
        ratio = torch.exp(new - torch.tensor(datum.sampling_logprobs))
        action = torch.tensor(datum.mask)
        inside = action * ((ratio > LOW) & (ratio < HIGH))
        advantage = datum.reward - fmean(rewards[datum.group_idx])
        total = total - (ratio * advantage * inside).sum()
        trained += float(inside.sum())
        masked += float((action - inside).sum())
    return total / max(trained, 1.0), {"trained_tokens": trained, "masked_tokens": masked}


async def train(curve: Curve) -> None:
    """Samples, computes the loss here, and lets the trainer do the rest."""
    async with TrainingClient("tiny") as client:
        job = Job(client, answer, group=GROUP, sampling=Sampling(max_tokens=1))
        for step in range(STEPS):
            batch = await job.run([SUMS[(step * TASKS + i) % len(SUMS)] for i in range(TASKS)])
            if batch.informative:
                await client.forward_backward_custom(batch.trajectories(), double_sided)
                await client.optim_step(learning_rate=1e-2, metrics=batch.metrics())
            curve.log(step + 1, batch.metrics())


if __name__ == "__main__":
    shown = Curve()
    asyncio.run(train(shown))
    shown.end()
