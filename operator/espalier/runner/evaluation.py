"""Asks checkpoints held-out tasks while the run goes on, and records what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from espalier.api.meta import decimal
from espalier.api.run.evaluation import Evaluation
from espalier.api.run.overlong import Overlong
from espalier.api.run.sampling import Sampling
from espalier.api.run.taskset import Taskset
from espalier.api.run.timeouts import Timeouts
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import Completion, GatewayClient, InvalidRequestError
from espalier.client import sampling as client_sampling
from espalier.core.names import BASE
from espalier.environments.environment import Environment
from espalier.environments.errors import RolloutFailedError
from espalier.loop.evaluation import figures
from espalier.rewards import Rewards, Scored
from espalier.rewards.figures import counted
from espalier.runner.declared_taskset import declared_taskset
from espalier.runner.group_sampling import Skipped, score_group
from espalier.runner.held_out_sets import HeldOutSets, OpenHeldOut
from espalier.runner.heldout import HeldOut
from espalier.runner.journal import Journal
from espalier.runner.played_groups import Playing, play_groups
from espalier.runner.rewards import Group
from espalier.runner.run_end import UserError, WaitError
from espalier.runner.scoring.remedies import REWARD_REMEDY
from espalier.runner.task_protocol import Task
from espalier.runner.task_source import OpenRewards, PlayedTasks, TaskSource
from espalier.runner.together import together
from espalier.runner.tries import Seeds, Tries

# Fewer than training has: an evaluation that is under way leaves it most of the server.
CONCURRENT = 16


@dataclass(frozen=True)
class Answered:
    """What came of an evaluation: ``figures`` by name, over ``tasks`` that were scored."""

    figures: dict[str, float]
    tasks: int
    scorer_errors: int
    checkpoint: str


@dataclass(frozen=True)
class Asked:
    """How held-out tasks are asked."""

    group_size: int
    temperature: float
    max_tokens: int
    pass_at_k: Sequence[int]
    sampling: Sampling
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
    return _summed(found, asked)


async def _answered(
    client: GatewayClient,
    tasks: TaskSource,
    indices: Sequence[int],
    asked: Asked,
    *,
    rewards: Rewards,
    checkpoint: str,
) -> list[_Task]:
    slots = asyncio.Semaphore(CONCURRENT)

    async def one(index: int) -> _Task:
        task = tasks.task(index)
        async with slots:
            completions = await _sampled(client, asked, index, task, checkpoint)
        scores = await score_group(rewards, index, task, completions)
        return _Task(tuple(scores), completions[0].checkpoint)

    return await together(one(index) for index in indices)


async def _played(
    client: GatewayClient,
    environment: Environment,
    indices: Sequence[int] | None,
    asked: Asked,
    *,
    rewards: Rewards,
    checkpoint: str,
) -> list[_Task]:
    """Plays the tasks, all if ``indices`` are None; the environment is open as long as it takes."""
    try:
        await environment.ready()
        numbers = range(environment.size) if indices is None else indices
        outcomes = await play_groups(
            client, environment, rewards, numbers, how=asked.playing, checkpoint=checkpoint
        )
    finally:
        await environment.close()
    for one in outcomes:
        if isinstance(one, Skipped):
            raise UserError(
                "PromptTooLong",
                f"task {one.task.id}: {one.detail}",
                "Ask shorter tasks, or raise the model's rollout.maxModelTokens",
            )
    groups = [one for one in outcomes if isinstance(one, Group)]
    return [_Task(group.scores, _sampled_by(group)) for group in groups]


def _sampled_by(group: Group) -> str:
    names = {turn.checkpoint for turn in group.written}
    return names.pop() if len(names) == 1 else ""


@dataclass(frozen=True)
class _Task:
    """The scores of the answers to one task, and the checkpoint that gave them."""

    scores: tuple[Scored, ...]
    checkpoint: str


def _summed(found: Sequence[_Task], asked: Asked) -> Answered:
    whole = [
        [score.reward for score in task.scores if score.reward is not None]
        for task in found
        if all(score.reward is not None for score in task.scores)
    ]
    failed = counted(score for task in found for score in task.scores)
    if not whole:
        causes = ", ".join(f"{cause} ({count})" for cause, count in failed.items())
        raise UserError("ScorerFailed", f"no answer could be scored: {causes}", REWARD_REMEDY)
    names = {task.checkpoint for task in found}
    sampled_by = names.pop() if len(names) == 1 else ""
    return Answered(figures(whole, asked.pass_at_k), len(whole), failed.total(), sampled_by)


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
    except InvalidRequestError as refused:
        problem = refused.problem
        detail = f"task {task.id}: {problem.detail}"
        raise UserError(problem.reason, detail, problem.remedy) from refused


class Evaluations:
    """The evaluations of a run: they start after steps and end on their own.

    Args:
        client: of the model.
        run: namespace and name.
        open_held_out: the held-out tasks, given the run's taskset and the evaluation.
        open_rewards: what scores answers, given a run's spec and tasks.
        journal: where results and failures go.
    """

    def __init__(
        self,
        client: GatewayClient,
        run: tuple[str, str],
        open_held_out: OpenHeldOut,
        open_rewards: OpenRewards,
        journal: Journal,
    ) -> None:
        self._client = client
        self._run = run
        self._sets = HeldOutSets(open_held_out)
        self._open_rewards = open_rewards
        self._journal = journal
        self._running: set[asyncio.Task[None]] = set()
        # The last step that evaluations were started at; None: those of this step are to start.
        self._looked_at: int | None = None
        self._started = False
        self._failed: BaseException | None = None

    def start(self, spec: TrainingRunSpec, step: int, checkpoint: str) -> None:
        """Starts what is due at the checkpoint that the trainer stands on, once.

        Raises what ended an earlier evaluation; the next call starts those of its step again.
        """
        self._raise_failure()
        if self._looked_at == step:
            return
        first, self._started, self._looked_at = not self._started, True, step
        for evaluation in spec.evaluation if first else ():
            self._open_early(declared_taskset(spec), evaluation)
        for evaluation in spec.evaluation:
            if evaluation.due(step, spec.steps, started=first):
                running = asyncio.ensure_future(self._evaluate(spec, evaluation, step, checkpoint))
                self._running.add(running)
                running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        if not running.cancelled() and (error := running.exception()) is not None:
            self._failed = error

    def _raise_failure(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            self._looked_at, self._started = None, False
            raise failed

    async def finish(self) -> None:
        """Waits for those that are under way; raises what ended one."""
        await asyncio.gather(*self._running, return_exceptions=True)
        self._raise_failure()

    async def close(self) -> None:
        """Cancels those that are under way."""
        running = [*self._running]
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._sets.close()

    def _open_early(self, training: Taskset, evaluation: Evaluation) -> None:
        """Opens what a user's image plays: its host does not wait for the first evaluation."""
        if evaluation.taskset.user_image is None:
            return

        async def open_() -> None:
            held_out = await self._sets.of(training, evaluation)
            await held_out.tasks.ready()

        opening = asyncio.ensure_future(open_())
        self._running.add(opening)
        opening.add_done_callback(self._ended)

    async def _evaluate(
        self, spec: TrainingRunSpec, evaluation: Evaluation, step: int, checkpoint: str
    ) -> None:
        held_out = await self._sets.of(declared_taskset(spec), evaluation)
        asked = Asked.of(evaluation, spec)
        # The run's rewards, of the evaluation's tasks and lengths.
        sampling = spec.sampling.model_copy(update={"max_tokens": asked.max_tokens})
        judged = spec.model_copy(update={"taskset": evaluation.taskset, "sampling": sampling})
        if evaluation.taskset.played is not None:
            # Its environment pays it, and nothing that measures one completion.
            own = {"rewards": None, "length_penalty": None, "overlong": Overlong()}
            judged = judged.model_copy(update=own)
        rewards = held_out.tasks.rewards(judged, self._open_rewards)
        found = await answered(self._client, held_out, asked, rewards, checkpoint or BASE)
        if checkpoint:
            await self._client.record_evaluation(
                self._run[0], checkpoint, evaluation.name, found.figures, found.tasks
            )
        else:
            await self._client.record_base_evaluation(
                self._run, evaluation.name, found.figures, found.tasks
            )
        self._journal.event(
            "evaluated",
            evaluation=evaluation.name,
            step=step,
            checkpoint=checkpoint or BASE,
            tasks=found.tasks,
            scorer_errors=found.scorer_errors,
            metrics=found.figures,
        )
