"""Asks checkpoints held-out tasks while the run goes on, and records what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from espalier.api.meta import decimal
from espalier.api.run.evaluation import Evaluation
from espalier.api.run.sampling import Sampling
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import Completion, GatewayClient, InvalidRequestError
from espalier.core.names import BASE
from espalier.loop.evaluation import figures
from espalier.rewards import Rewards, Scored
from espalier.rewards.figures import counted
from espalier.runner.group_sampling import score_group
from espalier.runner.heldout import HeldOut
from espalier.runner.journal import Journal
from espalier.runner.open_taskset import declared_taskset
from espalier.runner.run_end import UserError
from espalier.runner.scoring.remedies import REWARD_REMEDY
from espalier.runner.task_protocol import Task, Tasks
from espalier.runner.together import together

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

    @classmethod
    def of(cls, evaluation: Evaluation, sampling: Sampling) -> Asked:
        """As a run's evaluation says; ``sampling`` is the run's."""
        return cls(
            evaluation.group_size,
            decimal(evaluation.temperature),
            evaluation.max_tokens or sampling.max_tokens,
            evaluation.pass_at_k,
            sampling,
        )


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
    slots = asyncio.Semaphore(CONCURRENT)
    async with rewards:
        await rewards.ready()

        async def one(index: int) -> _Task:
            task = held_out.tasks.task(index)
            async with slots:
                completions = await _sampled(client, asked, task, checkpoint)
            scores = await score_group(rewards, index, task, completions)
            return _Task(tuple(scores), completions[0].checkpoint)

        found = await together(one(index) for index in held_out.indices)
    return _summed(found, asked)


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
    client: GatewayClient, asked: Asked, task: Task, checkpoint: str
) -> list[Completion]:
    try:
        return await client.sample(
            [message.wire() for message in task.messages],
            checkpoint=checkpoint,
            count=asked.group_size,
            temperature=asked.temperature,
            max_tokens=asked.max_tokens,
            extra=asked.sampling.request(),
        )
    except InvalidRequestError as refused:
        problem = refused.problem
        detail = f"task {task.id}: {problem.detail}"
        raise UserError(problem.reason, detail, problem.remedy) from refused


class Evaluations:
    """The evaluations of a run: they start after steps and end on their own.

    Args:
        client: of the model.
        namespace: of the run.
        open_held_out: the held-out tasks, given the run's taskset and the evaluation's.
        open_rewards: what scores answers, given a run's spec and tasks.
        journal: where results and failures go.
    """

    def __init__(
        self,
        client: GatewayClient,
        namespace: str,
        open_held_out: Callable[[Taskset, Taskset], HeldOut],
        open_rewards: Callable[[TrainingRunSpec, Tasks], Rewards],
        journal: Journal,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._open_held_out = open_held_out
        self._open_rewards = open_rewards
        self._journal = journal
        self._held_out: dict[str, tuple[tuple[Taskset, Taskset], HeldOut]] = {}
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

    async def _evaluate(
        self, spec: TrainingRunSpec, evaluation: Evaluation, step: int, checkpoint: str
    ) -> None:
        held_out = await asyncio.to_thread(self._tasks, declared_taskset(spec), evaluation)
        asked = Asked.of(evaluation, spec.sampling)
        # The run's rewards, of the evaluation's tasks and lengths.
        sampling = spec.sampling.model_copy(update={"max_tokens": asked.max_tokens})
        judged = spec.model_copy(update={"taskset": evaluation.taskset, "sampling": sampling})
        rewards = self._open_rewards(judged, held_out.tasks)
        found = await answered(self._client, held_out, asked, rewards, checkpoint or BASE)
        if checkpoint:
            await self._client.record_evaluation(
                self._namespace, checkpoint, evaluation.name, found.figures, found.tasks
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

    def _tasks(self, training: Taskset, evaluation: Evaluation) -> HeldOut:
        """The held-out tasks, which are drawn once: telling them from the run's reads both."""
        wanted = (training, evaluation.taskset)
        known = self._held_out.get(evaluation.name)
        if known is None or known[0] != wanted:
            known = (wanted, self._open_held_out(*wanted))
            self._held_out[evaluation.name] = known
        return known[1]
