"""Asks a checkpoint held-out tasks: how, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from espalier.api.meta import decimal
from espalier.api.run.evaluation import Evaluation
from espalier.api.run.limits import Limits
from espalier.api.run.sampling import Sampling
from espalier.api.run.timeouts import Timeouts
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import Completion, GatewayClient, InvalidRequestError
from espalier.client import sampling as client_sampling
from espalier.environments.environment import Environment
from espalier.environments.errors import RolloutFailedError
from espalier.loop.evaluation import figures
from espalier.rewards import Rewards
from espalier.rewards.figures import counted
from espalier.runner import prompt_limits
from espalier.runner.group_sampling import Outcome, Skipped, score_group
from espalier.runner.heldout import HeldOut
from espalier.runner.played_groups import Playing, play_groups
from espalier.runner.rewards import Group
from espalier.runner.run_end import UserError, WaitError
from espalier.runner.scoring.remedies import REWARD_REMEDY
from espalier.runner.task_protocol import Task
from espalier.runner.task_source import PlayedTasks, TaskSource
from espalier.runner.together import together
from espalier.runner.tries import Seeds, Tries

# Fewer than training has: an evaluation that is under way leaves it most of the server.
CONCURRENT = 16


@dataclass(frozen=True)
class Answered:
    """What came of an evaluation: ``figures`` by name, over ``tasks`` that were scored.

    ``too_long`` tasks were left out for their prompts, as the run's ``limits`` say.
    """

    figures: dict[str, float]
    tasks: int
    scorer_errors: int
    checkpoint: str
    too_long: int = 0


@dataclass(frozen=True)
class Asked:
    """How held-out tasks are asked."""

    group_size: int
    temperature: float
    max_tokens: int
    pass_at_k: Sequence[int]
    sampling: Sampling
    limits: Limits
    sample_seconds: float | None = None
    seed: int | None = None
    name: str = ""

    @classmethod
    def of(cls, evaluation: Evaluation, spec: TrainingRunSpec) -> Asked:
        """As a run's evaluation says."""
        return cls(
            evaluation.group_size,
            decimal(evaluation.temperature),
            evaluation.max_tokens or spec.sampling.max_tokens,
            evaluation.pass_at_k,
            spec.sampling,
            spec.limits,
            (spec.timeouts or Timeouts()).sample_seconds,
            spec.seed,
            evaluation.name,
        )

    @property
    def playing(self) -> Playing:
        """The same of tasks that are played. A rollout that fails is not tried again."""
        return Playing(
            self.group_size,
            client_sampling.Sampling(self.max_tokens, self.temperature),
            self.sampling,
            Tries(sample_seconds=self.sample_seconds),
            self.seed,
            ("evaluation", self.name),
            concurrent=CONCURRENT,
        )

    def seeds(self, index: int) -> Seeds:
        """Of one task: every checkpoint is asked with the same."""
        return Seeds(self.seed, ("evaluation", self.name, index))


async def answered(
    client: GatewayClient, held_out: HeldOut, asked: Asked, rewards: Rewards, checkpoint: str
) -> Answered:
    """The figures of a checkpoint on held-out tasks.

    Args:
        client: of the model.
        held_out: the tasks.
        asked: how.
        rewards: on these tasks, not opened yet; closed at the end.
        checkpoint: its name, ``base``, or empty for what the head serves.

    Raises:
        UserError: a task cannot be asked, or no answer could be scored.
        WaitError: the scorer's process did not start.
        GatewayError: the gateway refused or did not answer.
    """
    tasks = held_out.tasks
    async with rewards:
        if isinstance(tasks, PlayedTasks):
            found = await _played(
                client,
                tasks.environment,
                held_out.indices,
                asked,
                rewards=rewards,
                checkpoint=checkpoint,
            )
        else:
            await rewards.ready()
            indices = held_out.indices or ()
            found = await _answered(
                client, tasks, indices, asked, rewards=rewards, checkpoint=checkpoint
            )
    return _summed(prompt_limits.within(asked.limits, found), asked)


async def _answered(
    client: GatewayClient,
    tasks: TaskSource,
    indices: Sequence[int],
    asked: Asked,
    *,
    rewards: Rewards,
    checkpoint: str,
) -> list[Outcome]:
    slots = asyncio.Semaphore(CONCURRENT)

    async def one(index: int) -> Outcome:
        task = tasks.task(index)
        try:
            async with slots:
                completions = await _sampled(client, asked, index, task, checkpoint)
        except InvalidRequestError as refused:
            if not refused.is_too_long:
                problem = refused.problem
                detail = f"task {task.id}: {problem.detail}"
                raise UserError(problem.reason, detail, problem.remedy) from refused
            return Skipped(task, refused.problem.detail)
        scores = await score_group(rewards, index, task, completions)
        return Group(task, tuple(completions), tuple(scores))

    return await together(one(index) for index in indices)


async def _played(
    client: GatewayClient,
    environment: Environment,
    indices: Sequence[int] | None,
    asked: Asked,
    *,
    rewards: Rewards,
    checkpoint: str,
) -> list[Outcome]:
    """Plays the tasks, all if ``indices`` are None; the environment is open as long as it takes."""
    try:
        await environment.ready()
        numbers = range(environment.size) if indices is None else indices
        return await play_groups(
            client, environment, rewards, numbers, how=asked.playing, checkpoint=checkpoint
        )
    finally:
        await environment.close()


def _summed(outcomes: Sequence[Outcome], asked: Asked) -> Answered:
    found = [one for one in outcomes if isinstance(one, Group)]
    skipped = [one for one in outcomes if isinstance(one, Skipped)]
    if skipped and not found:
        raise UserError(
            "PromptTooLong",
            f"no prompt of {len(skipped)} tasks fits, the first of them of task "
            f"{skipped[0].task.id}: {skipped[0].detail}",
            "Ask shorter tasks, or raise limits.maxPromptTokens of the run or the model's "
            "rollout.maxModelTokens",
        )
    whole = [list(group.rewards) for group in found if group.scored]
    failed = counted(score for group in found for score in group.scores)
    if not whole:
        causes = ", ".join(f"{cause} ({count})" for cause, count in failed.items())
        raise UserError("ScorerFailed", f"no answer could be scored: {causes}", REWARD_REMEDY)
    names = {turn.checkpoint for group in found for turn in group.written}
    return Answered(
        figures(whole, asked.pass_at_k),
        len(whole),
        failed.total(),
        names.pop() if len(names) == 1 else "",
        len(skipped),
    )


async def _sampled(
    client: GatewayClient, asked: Asked, index: int, task: Task, checkpoint: str
) -> list[Completion]:
    request = client.sample(
        [message.wire() for message in task.messages],
        checkpoint=checkpoint,
        count=asked.group_size,
        temperature=asked.temperature,
        max_tokens=asked.max_tokens,
        extra=asked.sampling.request() | asked.seeds(index).fields(),
    )
    try:
        return await Tries(sample_seconds=asked.sample_seconds).sampled(request)
    except RolloutFailedError as late:
        detail = f"task {task.id} of an evaluation: {late.detail}"
        raise WaitError("SampleTimeout", asked.sample_seconds or 0.0, detail) from late
