"""What the command line does through the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from espalier.api.taskset import Taskset
from espalier.api.trainingrun import Sampling
from espalier.client import GatewayClient, Patience
from espalier.runner.heldout import HeldOut
from espalier.runner.problem import UserError

PATIENCE = Patience(deadline=60.0)
CONCURRENT = 32


@dataclass(frozen=True)
class Access:
    """Where the gateway is and who asks."""

    url: str
    token: str


@dataclass(frozen=True)
class Evaluation:
    """The mean reward of greedy answers to ``size`` held-out tasks. ``model`` is what was asked."""

    run: str
    model: str
    seed: int
    size: int
    mean_reward: float

    def wire(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


async def ask(
    access: Access, model: str, checkpoint: str, questions: Sequence[str], max_tokens: int
) -> list[str]:
    """Greedy answers, in the order of the questions.

    Asked one by one, so that two checkpoints are compared under the same batching.
    """
    async with GatewayClient(access.url, model, access.token, patience=PATIENCE) as client:
        return [
            (
                await client.sample(
                    [{"role": "user", "content": question}],
                    checkpoint=checkpoint,
                    temperature=0.0,
                    max_tokens=max_tokens,
                )
            )[0].text
            for question in questions
        ]


async def evaluate(
    access: Access,
    run: tuple[str, str],
    checkpoint: str,
    *,
    seed: int,
    held_out: Callable[[Taskset], HeldOut],
) -> Evaluation:
    """Asks a run's model held-out tasks of the run's kind.

    Args:
        access: to the gateway.
        run: namespace and name.
        checkpoint: whose answers count; empty for what the head serves.
        seed: of the tasks, for the record.
        held_out: the tasks, given the run's taskset.

    Raises:
        UserError: there are no such tasks.
        GatewayError: the gateway refused or did not answer.
    """
    namespace, name = run
    async with GatewayClient(access.url, "", access.token, patience=PATIENCE) as reader:
        view = await reader.run(namespace, name)
    if view.spec.taskset is None:
        raise UserError("TasksetInvalid", f"run {name} has no taskset", "Name a run that has one")
    tasks = held_out(view.spec.taskset)
    slug = f"{namespace}/{view.model}"
    async with GatewayClient(access.url, slug, access.token, patience=PATIENCE) as client:
        rewards = await _rewards(client, checkpoint, tasks, view.spec.sampling)
    asked = f"{view.model}@{checkpoint}" if checkpoint else view.model
    return Evaluation(name, asked, seed, len(rewards), fmean(rewards))


async def _rewards(
    client: GatewayClient, checkpoint: str, held: HeldOut, sampling: Sampling
) -> list[float]:
    slots = asyncio.Semaphore(CONCURRENT)

    async def reward(index: int) -> float:
        messages = [message.wire() for message in held.tasks.task(index).messages]
        async with slots:
            (completion,) = await client.sample(
                messages,
                checkpoint=checkpoint,
                temperature=0.0,
                max_tokens=sampling.max_tokens,
                extra=sampling.request(),
            )
        return held.tasks.score(index, completion.text).reward

    return await asyncio.gather(*(reward(index) for index in held.indices))
