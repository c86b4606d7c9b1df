"""Samples groups of completions through the gateway, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from espalier.api.meta import decimal
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import GatewayClient
from espalier.core.names import BASE
from espalier.runner.rewards import Group
from espalier.runner.tasks import Tasks

# The rollouts batch what is in flight; more would only wait in their queues.
CONCURRENT_GROUPS = 64


async def sample_groups(
    client: GatewayClient,
    tasks: Tasks,
    indices: Sequence[int],
    spec: TrainingRunSpec,
    checkpoint: str,
) -> list[Group]:
    """A scored group of ``spec.group_size`` completions for each task.

    Args:
        client: of the model.
        tasks: where the indices point.
        indices: of the tasks, in the order of the result.
        spec: group size and sampling.
        checkpoint: name of the checkpoint to sample; empty for the base.
    """
    slots = asyncio.Semaphore(CONCURRENT_GROUPS)

    async def group(index: int) -> Group:
        task = tasks.task(index)
        # No seed in the request: with chunked prefill a seeded one ends vLLM's engine on CPU.
        async with slots:
            completions = await client.sample(
                [message.wire() for message in task.messages],
                checkpoint=checkpoint or BASE,
                count=spec.group_size,
                temperature=decimal(spec.sampling.temperature),
                max_tokens=spec.sampling.max_tokens,
                extra=spec.sampling.request(),
            )
        scores = tuple(tasks.score(index, completion.text) for completion in completions)
        return Group(task, tuple(completions), scores)

    running = [asyncio.ensure_future(group(index)) for index in indices]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for other in running:
            other.cancel()
