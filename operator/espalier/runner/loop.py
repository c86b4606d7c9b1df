"""The training loop: sample groups, score them, and take one or several optimizer steps.

The loop keeps nothing that it needs: where it stands is read from the trainer before every step,
what it shall do from the run. So it goes on rightly after it, the trainer or the operator was
killed, and after a rollback moved the trainer to another checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from espalier.api.run.loss import CustomRef
from espalier.api.run.schedule import Schedule
from espalier.api.run.taskset import Taskset
from espalier.api.run.timeouts import Timeouts
from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire.trainer import TrainerState
from espalier.client import (
    ForbiddenError,
    GatewayClient,
    GradientsLostError,
    HeadPinnedError,
    InvalidRequestError,
    LogprobsMisalignedError,
    NoActiveRunError,
    NoGradientsError,
    NotFoundError,
    RefusedError,
    StaleTermError,
    UnauthorizedError,
)
from espalier.client.answers import RunView
from espalier.core.checkpoints.commits import run_identity
from espalier.environments.digest import Mark
from espalier.loop.recipe import Attempt
from espalier.loop.step_clock import StepClock, TimedSampler
from espalier.loop.steps import Steps, Taken
from espalier.runner import error_budget, heldout, prometheus, refusals, step_series
from espalier.runner.custom_loss.declared_loss import DeclaredLoss, open_loss
from espalier.runner.declared_step import DeclaredStep, figures, open_schedule, sampled
from espalier.runner.declared_taskset import declared_taskset
from espalier.runner.due_evaluations import Evaluations
from espalier.runner.group_sampling import Outcome
from espalier.runner.held_out_sets import OpenHeldOut
from espalier.runner.journal import Journal
from espalier.runner.opened_run import MovedError, OpenedRun
from espalier.runner.opened_taskset import OpenedTaskset
from espalier.runner.run_end import UserError
from espalier.runner.run_trackers import RunTrackers
from espalier.runner.step_time import StepTime, TimedTrainer
from espalier.runner.task_source import OpenRewards, TaskSource
from espalier.runner.waiting import Waiting
from espalier.telemetry import spans


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


class Loop:
    """Drives one run to its last step.

    Args:
        client: of the run's model.
        run: namespace and name.
        open_tasks: opens the tasks of a taskset; called again when the taskset is edited.
        open_rewards: makes what scores them; called again when the rewards are edited.
        open_loss: makes a loss of the user's; called again when its reference is edited.
        open_held_out: opens held-out tasks, given the run's taskset and an evaluation.
        journal: where events go.
        waiting: paces and bounds every wait.
        mounted: what of a taskset's files this process finds (``Taskset.mounted``); None: all.
        modules: those of the user's that this process finds, as ``<ConfigMap>/<key>``; None: all.
        trackers: told of every step that was taken.
    """

    def __init__(
        self,
        client: GatewayClient,
        run: tuple[str, str],
        *,
        open_tasks: Callable[[Taskset | None], TaskSource],
        open_rewards: OpenRewards,
        open_loss: Callable[[CustomRef], DeclaredLoss] = open_loss,
        open_held_out: OpenHeldOut = heldout.of_evaluation,
        journal: Journal,
        waiting: Waiting,
        mounted: str | None = None,
        modules: frozenset[str] | None = None,
        trackers: RunTrackers | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._client = client
        self._run = run
        self._opened = OpenedRun(
            open_tasks, open_rewards, open_loss, journal, mounted=mounted, modules=modules
        )
        self._journal = journal
        self._evaluations = Evaluations(client, run, open_held_out, open_rewards, journal)
        self._waiting = waiting
        self._trackers = trackers or RunTrackers(journal, run)
        self._limits = limits or Limits()
        self._scheduled: tuple[Schedule, Steps[Outcome]] | None = None
        self._trainer = TimedTrainer(client)
        self._step_time = StepTime()
        self._clock = StepClock()
        # The step that was taken last, and its checkpoint.
        self._last: tuple[int, str] | None = None

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
            await self._evaluations.close()
            if self._scheduled is not None:
                await self._scheduled[1].close()
            await asyncio.to_thread(self._trackers.finish)
            await self._opened.close()

    async def _turn(self) -> bool:
        """One step, or one wait for what hinders it. True when there is nothing more to do."""
        settle = self._limits.settle_seconds
        try:
            return await self._advance()
        except MovedError as moved:
            # A pod's mounts do not change: the operator starts another one.
            self._journal.event("tasks-moved", to=str(moved))
            return True
        except (HeadPinnedError, LogprobsMisalignedError) as refused:
            reason = refused.problem.reason
            await self._waiting.on(reason, str(refused), self._limits.hold_seconds)
        except (StaleTermError, NoGradientsError, GradientsLostError) as refused:
            # The head moved under the step, or the trainer lost what was added: drop it, and take
            # the next from where the trainer is.
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
        if run.over:
            # Before the trainer is asked: it may train the next run, which is not this runner's.
            return await self._ended(run)
        if run.suspended or run.paused:
            reason = "Suspended" if run.suspended else "Paused"
            await self._waiting.on(reason, "the run is held", self._limits.hold_seconds)
            return False
        try:
            state = await self._client.state()
        except NoActiveRunError:
            return await self._ended(await self._client.run(*self._run))
        if state.run != run_identity(self._run[1], run.uid):
            detail = f"the trainer trains run {state.run!r}"
            await self._waiting.on("NotAssigned", detail, self._limits.settle_seconds)
            return False
        self._evaluations.start(run.spec, state.run_step, state.checkpoint)
        if state.run_step >= run.spec.steps:
            await self._evaluations.finish()
            self._journal.event("finished", step=state.run_step)
            return True
        with spans.span("step", {spans.STEP: state.run_step + 1}):
            await self._step(run.spec, state)
        return False

    async def _ended(self, run: RunView) -> bool:
        """Whether a run that the gateway does not hold for active has ended, not been suspended."""
        if run.suspended and not run.over:
            return False
        if self._last is not None:
            # Nothing where they were started; those that failed are begun again.
            self._evaluations.start(run.spec, *self._last)
        await self._evaluations.finish()
        self._journal.event("finished", over=run.over)
        return True

    async def _step(self, spec: TrainingRunSpec, state: TrainerState) -> None:
        refusals.check(spec)
        uid = state.run.rpartition("/")[2]
        self._trackers.open(spec, uid)
        self._opened.find(spec)
        loss = self._opened.loss(spec)
        taskset = await self._opened.taskset(spec)
        steps = await self._steps(spec)
        recipe = DeclaredStep(
            TimedSampler(self._client, self._clock),
            spec,
            taskset,
            mark=self._marked(spec, state, taskset),
            journal=self._journal,
            trackers=self._trackers,
            loss=loss,
        )
        times = spec.timeouts or Timeouts()
        self._trainer.seconds = times.train_seconds
        position = (state.term, state.run_step, state.digest)
        round_ = steps.round(state, recipe)
        taken = await self._step_time.within(
            position, times.step_seconds, round_, lambda: steps.doing
        )
        attempt = steps.attempt
        if taken is not None:
            spans.note({spans.CHECKPOINT: taken.committed.checkpoint_id})
            self._report(taken, state.term)
            step_series.count(taken)
            seen = taken.attempt.metrics | taken.request.metrics
            self._trackers.step(spec, uid, state.run_step + 1, seen)
            # Here, because a run that has taken its last step is not active any more.
            self._last = (state.run_step + 1, taken.committed.checkpoint_id)
            self._evaluations.start(spec, *self._last)
        else:
            await self._without_step(spec, state, attempt)
        # Not before: a step that fails again and again is one wait.
        self._waiting.over()

    async def _without_step(
        self, spec: TrainingRunSpec, state: TrainerState, attempt: Attempt[Outcome]
    ) -> None:
        """A round brought no step; UserError where no further one would, or too many failed."""
        groups = sampled(attempt.groups)
        error_budget.check(spec.rollout_errors, groups, state.cursor, state.run_step + 1)
        minibatches = min(spec.batch.minibatches, spec.steps - state.run_step)
        why = refusals.without_signal(attempt, spec, minibatches)
        if attempt.rounds >= self._limits.rounds:
            raise why
        seen = figures(attempt, spec.taskset)
        prometheus.BARREN_ROUNDS.inc()
        self._journal.event("round-without-signal", round=attempt.rounds, metrics=seen)
        # The 1st, 2nd, 4th: often at first, when somebody may look.
        if attempt.rounds & (attempt.rounds - 1) == 0:
            step, problem = state.run_step + 1, why.problem
            try:
                await self._client.record_barren_rounds(self._run, step, attempt.rounds, problem)
            except RefusedError as refused:
                # The run goes on without: the log has it.
                self._journal.event("rounds-not-recorded", detail=str(refused))

    def _report(self, taken: Taken[Outcome], term: int) -> None:
        self._journal.event(
            "step",
            step=taken.request.cursor["run_step"],
            term=term,
            checkpoint=taken.committed.checkpoint_id,
            promotion=taken.committed.promotion,
            metrics=taken.request.metrics,
        )

    async def _steps(self, spec: TrainingRunSpec) -> Steps[Outcome]:
        if self._scheduled is None or self._scheduled[0] != spec.schedule:
            if self._scheduled is not None:
                await self._scheduled[1].close()
            steps = Steps(self._trainer, open_schedule(spec.schedule), self._clock)
            self._scheduled = (spec.schedule, steps)
        return self._scheduled[1]

    def _marked(self, spec: TrainingRunSpec, state: TrainerState, opened: OpenedTaskset) -> Mark:
        """The mark of the run's tasks; UserError where others lie there than before."""
        mark = Mark.of(state.run, declared_taskset(spec), opened.used.digest)
        try:
            mark.check(state.cursor)
        except UserError as changed:
            self._journal.event("taskset-changed", detail=changed.problem.detail)
            raise
        return mark
