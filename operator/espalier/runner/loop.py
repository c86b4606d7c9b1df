"""The training loop: sample groups, score them, one forward-backward, one optimizer step.

The loop keeps nothing that it needs: where it stands is read from the trainer before every step,
what it shall do from the run. So it goes on rightly after it, the trainer or the operator was
killed, and after a rollback moved the trainer to another checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from espalier.api.meta import decimal
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire import ForwardBackwardRequest, OptimStepRequest, TrainerState
from espalier.client import (
    ForbiddenError,
    GatewayClient,
    HeadPinnedError,
    InvalidRequestError,
    NoActiveRunError,
    NoGradientsError,
    NotFoundError,
    RefusedError,
    StaleTermError,
    UnauthorizedError,
)
from espalier.core.checkpoints.commits import run_identity
from espalier.core.names import parse_checkpoint_name
from espalier.environments.digest import FIELD, Mark
from espalier.environments.environment import Environment
from espalier.runner.group_sampling import Skipped
from espalier.runner.journal import Journal
from espalier.runner.opened_taskset import OpenedTaskset
from espalier.runner.rewards import Group, kept, measured, metrics, payloads, records, uninformative
from espalier.runner.run_end import UserError
from espalier.runner.scoring.on_error import told
from espalier.runner.scoring.scorer import Scorer
from espalier.runner.task_protocol import Tasks
from espalier.runner.waiting import Waiting


@dataclass(frozen=True)
class Limits:
    """Bounds of the loop.

    Attributes:
        rounds: of sampling for one step while no group teaches.
        hold_seconds: for a run that is suspended or paused; the operator ends the runner sooner.
        settle_seconds: for everything that the operator brings about: grants, names, an assignment.
    """

    rounds: int = 20
    hold_seconds: float = 1800.0
    settle_seconds: float = 180.0


class _TasksMovedError(Exception):
    """The run's tasks are now somewhere that this pod has not mounted."""


@dataclass
class _Attempt:
    """What was sampled for the step that follows one position of the trainer."""

    position: tuple[int, int, str]
    rounds: int = 0
    groups: list[Group] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0


class Loop:
    """Drives one run to its last step.

    Args:
        client: of the run's model.
        run: namespace and name.
        open_tasks: opens the tasks of a taskset; called again when the taskset is edited.
        open_scorer: makes what scores them.
        journal: where events go.
        waiting: paces and bounds every wait.
        mounted: what of a taskset's files this process finds (``Taskset.mounted``); None: all.
    """

    def __init__(
        self,
        client: GatewayClient,
        run: tuple[str, str],
        *,
        open_tasks: Callable[[Taskset | None], Tasks | Environment],
        open_scorer: Callable[[Taskset, Tasks], Scorer] = Scorer,
        journal: Journal,
        waiting: Waiting,
        mounted: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._client = client
        self._run = run
        self._open_tasks = open_tasks
        self._open_scorer = open_scorer
        self._journal = journal
        self._waiting = waiting
        self._mounted = mounted
        self._limits = limits or Limits()
        self._opened: OpenedTaskset | None = None
        self._mark: Mark | None = None
        self._attempt = _Attempt((0, 0, ""))

    async def drive(self) -> None:
        """Returns when the run has taken all its steps, or needs a runner with other tasks.

        Raises:
            UserError: only the user can repair it.
            WaitError: something did not come true in time.
            GatewayError: the gateway failed for longer than the client's patience.
        """
        try:
            while not await self._turn():
                pass
        finally:
            await self._close()

    async def _turn(self) -> bool:
        """One step, or one wait for what hinders it. True when there is nothing more to do."""
        settle = self._limits.settle_seconds
        try:
            return await self._advance()
        except _TasksMovedError as moved:
            # A pod's mounts do not change: the operator starts another one.
            self._journal.event("tasks-moved", to=str(moved))
            return True
        except HeadPinnedError as refused:
            await self._waiting.on("HeadPinned", str(refused), self._limits.hold_seconds)
        except (StaleTermError, NoGradientsError) as refused:
            # The head moved under the step: drop it, and take the next from where the trainer is.
            self._journal.event("step-dropped", reason=refused.problem.reason)
            await self._waiting.on(refused.problem.reason, str(refused), settle)
        except (NotFoundError, ForbiddenError, UnauthorizedError) as refused:
            await self._waiting.on(refused.problem.reason, str(refused), settle)
        except InvalidRequestError as refused:
            problem = refused.problem
            raise UserError(problem.reason, problem.detail, problem.remedy) from refused
        except RefusedError as refused:
            if refused.status < 500:
                raise
            # A rollout that shuts down answers so, and a trainer whose command failed.
            await self._waiting.on(refused.problem.reason, str(refused), settle)
        return False

    async def _advance(self) -> bool:
        run = await self._client.run(*self._run)
        if run.suspended or run.paused:
            reason = "Suspended" if run.suspended else "Paused"
            await self._waiting.on(reason, "the run is held", self._limits.hold_seconds)
            return False
        try:
            state = await self._client.state()
        except NoActiveRunError:
            return await self._ended()
        if state.run != run_identity(self._run[1], run.uid):
            detail = f"the trainer trains run {state.run!r}"
            await self._waiting.on("NotAssigned", detail, self._limits.settle_seconds)
            return False
        if state.run_step >= run.spec.steps:
            self._journal.event("finished", step=state.run_step)
            return True
        if state.pending:
            # Of a runner that was killed, or of a step that was refused: their samples are gone.
            await self._client.zero_grad(term=state.term)
        await self._step(run.spec, state)
        return False

    async def _ended(self) -> bool:
        """Whether a run that the gateway does not hold for active has ended, not been suspended."""
        run = await self._client.run(*self._run)
        if not run.suspended:
            self._journal.event("finished", reason="NoActiveRun")
        return not run.suspended

    async def _step(self, spec: TrainingRunSpec, state: TrainerState) -> None:
        _check(spec)
        position = (state.term, state.run_step, state.digest)
        if self._attempt.position != position:
            self._attempt = _Attempt(position)
        attempt = self._attempt
        await self._sample(spec, state, attempt)
        trained = kept(attempt.groups, spec.group_filter)
        if trained:
            await self._train(spec, state, attempt, trained)
        elif attempt.rounds >= self._limits.rounds:
            raise _without_signal(attempt)
        else:
            seen = metrics(attempt.groups, len(attempt.groups), len(attempt.skipped))
            self._journal.event("round-without-signal", round=attempt.rounds, metrics=seen)
        # Not before: a step that fails again and again is one wait.
        self._waiting.over()

    async def _sample(self, spec: TrainingRunSpec, state: TrainerState, attempt: _Attempt) -> None:
        opened = await self._tasks(spec.taskset, state)
        tasks = opened.tasks
        count = spec.groups_per_step
        # From the step alone, so that a restarted runner asks what the killed one asked.
        first = (state.run_step + attempt.rounds) * count
        indices = [(first + offset) % tasks.size for offset in range(count)]
        started = time.monotonic()
        sampled = await opened.sample(self._client, indices, spec, state.checkpoint)
        for group in sampled.groups:
            for entry in told(group.task, group.scores):
                self._journal.event("scorer-error", **entry)
        for one in sampled.skipped:
            self._journal.event("prompt-too-long", task=one.task.id, detail=one.detail)
        attempt.groups += sampled.groups
        attempt.skipped += sampled.skipped
        attempt.seconds += time.monotonic() - started
        attempt.rounds += 1

    async def _train(
        self, spec: TrainingRunSpec, state: TrainerState, attempt: _Attempt, trained: list[Group]
    ) -> None:
        started = time.monotonic()
        loss, learning_rate = spec.recipe
        await self._client.forward_backward(
            ForwardBackwardRequest(
                inputs=list(payloads(trained)),
                group_size=len(trained[0].completions),
                loss_fn=loss.name,
                loss_fn_config=loss.config() or None,
                advantage_scale=spec.advantage.scale,
            ),
            term=state.term,
        )
        backward = time.monotonic()
        dropped = len(attempt.groups) - len(trained)
        seen = metrics(attempt.groups, dropped, len(attempt.skipped))
        step = state.run_step + 1
        committed = await self._client.optim_step(
            OptimStepRequest(
                learning_rate=decimal(learning_rate),
                **spec.optimizer.config(),
                metrics=seen,
                measured=_of_sampled(state, attempt),
                cursor=self._cursor(step, spec),
                rollouts=records(attempt.groups, trained),
            ),
            term=state.term,
        )
        self._journal.event(
            "step",
            step=step,
            term=state.term,
            checkpoint=committed.checkpoint_id,
            promotion=committed.promotion,
            metrics=seen,
            sample_seconds=round(attempt.seconds, 3),
            train_seconds=round(backward - started, 3),
            commit_seconds=round(time.monotonic() - backward, 3),
        )

    def _cursor(self, step: int, spec: TrainingRunSpec) -> dict[str, Any]:
        marked = {FIELD: self._mark.wire()} if self._mark is not None else {}
        return {"run_step": step, "next_task": step * spec.groups_per_step, **marked}

    async def _tasks(self, spec: Taskset | None, state: TrainerState) -> OpenedTaskset:
        if self._opened is None or self._opened.spec != spec:
            self._opened = await self._open(spec)
        opened = self._opened
        self._mark = Mark.of(state.run, opened.spec, opened.digest)
        try:
            self._mark.check(state.cursor)
        except UserError as changed:
            self._journal.event("taskset-changed", detail=changed.problem.detail)
            raise
        return opened

    async def _open(self, spec: Taskset | None) -> OpenedTaskset:
        needed = spec.mounted if spec is not None else ""
        if needed and self._mounted not in (None, needed):
            raise _TasksMovedError(spec.file.name if spec and spec.file else needed)
        await self._close()
        # Importing a dataset takes seconds, in which SIGTERM must be heard.
        tasks = await asyncio.to_thread(self._open_tasks, spec)
        if spec is None:
            raise UserError("TasksetInvalid", "the run has no taskset", "Set spec.taskset")
        opened = await OpenedTaskset.open(spec, tasks, self._open_scorer)
        size = opened.tasks.size
        self._journal.event("tasks-opened", size=size, digest=opened.digest, **opened.facts)
        return opened

    async def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()


def _of_sampled(state: TrainerState, attempt: _Attempt) -> dict[str, dict[str, float]]:
    """What the samples say of the checkpoint that they are of; the base, or another model's, has
    no place in the model's tree."""
    found = measured(attempt.groups)
    own = parse_checkpoint_name(state.model, state.checkpoint) is not None
    return {state.checkpoint: found} if own and found else {}


def _check(spec: TrainingRunSpec) -> None:
    """Refuses what a run of an older version may hold, and the API server admits no more."""
    if spec.advantage.source != "Estimated":
        raise UserError(
            "AdvantageSourceInvalid",
            f"advantage.source is {spec.advantage.source}, and no taskset gives advantages",
            "Set spec.advantage.source to Estimated, or train with driver: Client",
        )


def _without_signal(attempt: _Attempt) -> UserError:
    if attempt.groups:
        detail, remedy = uninformative(attempt.groups, attempt.rounds)
        return UserError("RewardsUninformative", detail, remedy)
    first = attempt.skipped[0]
    return UserError(
        "PromptTooLong",
        f"in {attempt.rounds} rounds no task fitted the context, the first of them "
        f"{first.task.id}: {first.detail}",
        "Ask shorter tasks, lower sampling.maxTokens, or raise the model's rollout.maxModelTokens",
    )
