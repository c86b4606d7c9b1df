"""What the command line does through the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from espalier.api.run.sampling import Sampling
from espalier.api.run.taskset import Taskset
from espalier.cli.options import Access
from espalier.cli.reward_surroundings import surroundings
from espalier.client import GatewayClient, InvalidRequestError, Patience
from espalier.rewards import RewardFailedError, Rewards, Scored
from espalier.rewards.figures import counted
from espalier.runner.heldout import HeldOut
from espalier.runner.open_rewards import open_rewards
from espalier.runner.run_end import UserError
from espalier.runner.scoring.remedies import REMEDY, REWARD_REMEDY

PATIENCE = Patience(deadline=60.0)
CONCURRENT = 32


@dataclass(frozen=True)
class Evaluation:
    """The mean reward of greedy answers to held-out tasks. ``model`` is what was asked.

    ``size`` counts the answers that have a reward, ``scorer_errors`` those whose scorer failed:
    under onError Zero they count as 0, else they are left out.
    """

    run: str
    model: str
    seed: int
    size: int
    mean_reward: float
    scorer_errors: int

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
    module: Callable[[str, str], str],
) -> Evaluation:
    """Asks a run's model held-out tasks of the run's kind.

    Args:
        access: to the gateway.
        run: namespace and name.
        checkpoint: whose answers count; empty for what the head serves.
        seed: of the tasks, for the record.
        held_out: the tasks, given the run's taskset.
        module: the text of a reward's module by ConfigMap and key.

    Raises:
        UserError: there are no such tasks, or they cannot be scored.
        WaitError: the scorer's process did not start.
        GatewayError: the gateway refused or did not answer.
    """
    namespace, name = run
    async with GatewayClient(access.url, "", access.token, patience=PATIENCE) as reader:
        view = await reader.run(namespace, name)
    if view.spec.taskset is None:
        raise UserError("TasksetInvalid", f"run {name} has no taskset", "Name a run that has one")
    taskset = view.spec.taskset
    tasks = held_out(taskset)
    slug = f"{namespace}/{view.model}"
    async with (
        GatewayClient(access.url, slug, access.token, patience=PATIENCE) as client,
        open_rewards(view.spec, tasks.tasks, surroundings(access, namespace, module)) as rewards,
    ):
        await rewards.ready()
        scores = await _scores(client, rewards, tasks, checkpoint, view.spec.sampling)
    given = [score.reward for score in scores if score.reward is not None]
    failed = counted(scores)
    if not given:
        remedy = REMEDY if view.spec.rewards is None else REWARD_REMEDY
        causes = ", ".join(f"{cause} ({count})" for cause, count in failed.items())
        raise UserError("ScorerFailed", f"no answer could be scored: {causes}", remedy)
    asked = f"{view.model}@{checkpoint}" if checkpoint else view.model
    return Evaluation(name, asked, seed, len(given), fmean(given), failed.total())


async def _scores(
    client: GatewayClient, rewards: Rewards, held: HeldOut, checkpoint: str, sampling: Sampling
) -> list[Scored]:
    slots = asyncio.Semaphore(CONCURRENT)

    async def scored(index: int) -> Scored:
        task = held.tasks.task(index)
        try:
            async with slots:
                (completion,) = await client.sample(
                    [message.wire() for message in task.messages],
                    checkpoint=checkpoint,
                    temperature=0.0,
                    max_tokens=sampling.max_tokens,
                    extra=sampling.request(),
                )
        except InvalidRequestError as refused:
            problem = refused.problem
            detail = f"task {task.id}: {problem.detail}"
            raise UserError(problem.reason, detail, problem.remedy) from refused
        try:
            (score,) = await rewards.score(index, task, [completion])
        except RewardFailedError as failed:
            raise UserError("ScorerFailed", failed.detail, failed.remedy) from failed
        return score

    asked = [asyncio.ensure_future(scored(index)) for index in held.indices]
    try:
        return await asyncio.gather(*asked)
    finally:
        for other in asked:
            other.cancel()
