"""The loop around a TrainingClient: sample groups, train on them, validate now and then."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from espalier.api.metric_names import REWARD, of_step
from espalier.api.wire.declared import Declared
from espalier.api.wire.gradients import ForwardBackwardRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import TrainerState
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.client.custom_loss import LossOf, weights_of
from espalier.client.errors import ConfigurationError
from espalier.client.rollout import Rollout
from espalier.client.sampling import Sampling
from espalier.client.training_client import TrainingClient
from espalier.core.names import BASE
from espalier.loop.batch import Batch
from espalier.loop.custom_loss import CustomGradients, LossDatum
from espalier.loop.fit_commands import Commands
from espalier.loop.fit_config import FitConfig, Settings, as_json, check_own_loss
from espalier.loop.fit_figures import own, passed, uninformative
from espalier.loop.job import Job
from espalier.loop.minibatches import Uses
from espalier.loop.precomputed import Source, missing_fraction, trajectories
from espalier.loop.recipe import Attempt
from espalier.loop.schedule import Place, Schedule, Synchronous
from espalier.loop.session import RolloutFunction, Sampler, Task
from espalier.loop.step_clock import StepClock, TimedSampler
from espalier.loop.steps import Steps
from espalier.tracking.trackers import Tracker, Trackers

T = TypeVar("T", bound=Task)
Group = list[Rollout]


class ConvergedWarning(UserWarning):
    """A fit ended before its last step: every rollout of a task now gets the same reward."""


class Fit(Generic[T]):
    """Trains a model on tasks until it has taken ``config.steps`` steps.

    It keeps nothing that it needs: where it stands is read from the trainer, so that a fit that
    is started again after a crash goes on at the next step. It samples the checkpoint that the
    trainer stands on, whatever the head serves, so that rewards are of known weights. What the run
    in Git declares holds where the configuration leaves it open, from the next step on.

    Args:
        client: of the model.
        tasks: taken in order, around and around.
        rollout: plays one task and returns its reward.
        config: everything else.
        validation: tasks that are never trained on.
        trackers: told of every step.
        schedule: how sampling and training take turns; Synchronous if None.
        loss: a loss of your own in place of ``config.loss_fn``, as of ``forward_backward_custom``;
            its data have ``advantages`` too. It is called once for each optimizer step.
    """

    def __init__(
        self,
        client: TrainingClient,
        tasks: Sequence[T],
        rollout: RolloutFunction[T],
        config: FitConfig,
        *,
        validation: Sequence[T] = (),
        trackers: Sequence[Tracker] = (),
        schedule: Schedule[Group] | None = None,
        loss: LossOf[LossDatum] | None = None,
    ) -> None:
        if not tasks:
            raise ConfigurationError("tasks is empty: there is nothing to train on")
        if (config.val_before_train or config.val_only or config.validate_every) and not validation:
            raise ConfigurationError("validation is empty, and the configuration asks for it")
        if loss is not None:
            check_own_loss(config, schedule)
        self._client = client
        self._loss = loss
        self._tasks = tasks
        self._validation = validation
        self._config = config
        self._trackers = Trackers(trackers)
        self._schedule = schedule or Synchronous[Group]()
        self._schedule.check(config.uses)
        self._rollout = rollout
        self._bound: Settings | None = None
        self._clock = StepClock()
        # Of a validation, until the next step takes it along.
        self._evaluated: dict[str, dict[str, float]] = {}

    def fit(self) -> dict[str, float]:
        """``fit_async`` without asyncio; the metrics of the last step or validation."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.fit_async())
        raise RuntimeError("fit() was called inside a running event loop: use `await fit_async()`")

    async def fit_async(self) -> dict[str, float]:
        """Trains; the metrics of the last step or validation."""
        await self._bind()
        self._trackers.start(self.settings())
        try:
            return await self._run()
        finally:
            self.shutdown()

    def shutdown(self) -> None:
        """Ends the trackers; twice is fine. The client stays open: it is the caller's."""
        self._trackers.finish()

    def settings(self) -> dict[str, Any]:
        """The whole configuration, as trackers and checkpoints get it; it holds no secret."""
        bound = {} if self._bound is None else self._bound.wire()
        own = {} if self._loss is None else {"loss_fn": "custom"}
        return {"model": self._client.model, **as_json(self._config), **bound, **own}

    async def _bind(self) -> None:
        """Reads what the run declares now."""
        declared = await self._client.declared()
        self._bound = self._config.bound(declared or Declared(run=""))

    @property
    def _now(self) -> Settings:
        """The settings as the run declared them last."""
        if self._bound is None:
            raise RuntimeError("a fit has no settings before it runs")
        return self._bound

    @property
    def _source(self) -> Source:
        return "Precomputed" if self._now.use_precomputed_advantage else "Estimated"

    async def _run(self) -> dict[str, float]:
        config, last = self._config, dict[str, float]()
        await self._resume()
        if config.val_before_train or config.val_only:
            last = await self._validated(await self._client.state())
            if config.val_only:
                return last
        self._clock.lap()
        steps = Steps[Group](Commands(self._client), self._schedule, self._clock)
        try:
            return await self._taken(steps, last)
        finally:
            await steps.close()

    async def _taken(self, steps: Steps[Group], last: dict[str, float]) -> dict[str, float]:
        """Takes the steps that are left; ``last`` are the metrics to return if there is none."""
        config = self._config
        while True:
            state = await self._client.state()
            if state.run_step >= config.steps:
                return last
            await self._bind()
            taken = await steps.round(state, self)
            if taken is None:
                if steps.attempt.rounds < config.rounds:
                    continue
                self._converged(state.run_step, Batch(steps.attempt.groups))
                return last
            self._evaluated = {}
            last = taken.request.metrics | taken.attempt.metrics
            self._log(state.run_step + 1, last)
            if config.validate_every and (state.run_step + 1) % config.validate_every == 0:
                last |= await self._validated(await self._client.state())

    async def _resume(self) -> None:
        """Moves the head to ``resume_from``, unless the run's last step was taken after that."""
        wanted = self._config.resume_from
        if not wanted:
            return
        state = await self._client.state()
        last = state.cursor.get("fit")
        gone_on = isinstance(last, dict) and last.get("resume_from") == wanted
        if not gone_on and state.checkpoint != wanted:
            await self._client.set_head(wanted)

    @property
    def uses(self) -> Uses:
        """See ``loop.recipe.Recipe``."""
        return self._config.uses

    def place(self, state: TrainerState, attempt: Attempt[Group]) -> Place:
        """See ``loop.recipe.Recipe``."""
        count = self._config.tasks_per_step * self.uses.minibatches
        return Place(
            term=state.term,
            run_step=state.run_step,
            checkpoint=state.checkpoint or BASE,
            count=count,
            round=attempt.rounds,
            take=count,
            recipe=(self._now.group, self._now.sampling),
            uses=self.uses,
            left=self._config.steps - state.run_step,
        )

    async def play(self, numbers: Sequence[int], checkpoint: str) -> Sequence[Group]:
        """See ``loop.recipe.Recipe``."""
        tasks = [self._tasks[number % len(self._tasks)] for number in numbers]
        sampler = TimedSampler(self._client, self._clock)
        job = self._job(sampler, self._now.sampling, self._now.group)
        return (await job.run(tasks, checkpoint=checkpoint)).groups

    def chosen(self, groups: Sequence[Group], place: Place) -> Sequence[Group]:
        """See ``loop.recipe.Recipe``."""
        batch = Batch(list(groups))
        compared = self._source == "Estimated" and self._now.advantage_estimator != "None"
        return batch.informative if compared else batch.whole

    def inputs(self, chosen: Sequence[Group]) -> Sequence[Sequence[TrajectoryPayload]]:
        """See ``loop.recipe.Recipe``."""
        found = iter(trajectories(chosen, self._source))
        return [[next(found) for _ in group] for group in chosen]

    def gradients(
        self, inputs: Sequence[TrajectoryPayload]
    ) -> ForwardBackwardRequest | CustomGradients:
        """See ``loop.recipe.Recipe``."""
        now = self._now
        if self._loss is not None:
            differentiate = partial(weights_of, self._loss)
            return CustomGradients(
                inputs, differentiate, now.advantage_estimator, now.advantage_scale
            )
        return ForwardBackwardRequest(
            inputs=list(inputs),
            loss_fn=now.loss_fn,
            loss_fn_config=dict(now.loss_fn_config) or None,
            advantage_estimator=now.advantage_estimator,
            advantage_scale=now.advantage_scale,
            **{name: getattr(now.objective, name) for name in type(now.objective).model_fields},
        )

    def step(self, state: TrainerState, attempt: Attempt[Group]) -> OptimStepRequest:
        """See ``loop.recipe.Recipe``."""
        batch, done = Batch(attempt.groups), state.run_step
        seen = batch.metrics() | attempt.staleness_metrics() | attempt.seconds
        if self._source == "Precomputed":
            seen["advantage/missing_fraction"] = missing_fraction(batch.whole)
        measured = self._evaluated.get(state.checkpoint, {}) | own(batch, state)
        trained = {id(rollout) for group in attempt.trained for rollout in group}
        return OptimStepRequest(
            learning_rate=self._now.rate_at(done + 1),
            **self._now.optimizer.model_dump(),
            metrics=seen,
            measured={state.checkpoint: measured} if measured else {},
            cursor={
                "next_task": (done + 1) // self.uses.epochs * self._config.tasks_per_step,
                "fit": self.settings(),
            },
            rollouts=[r.record(trained=id(r) in trained) for r in batch.rollouts],
        )

    def _converged(self, done: int, batch: Batch) -> None:
        """Ends a fit whose groups all have equal rewards; an error where it never learnt."""
        config = self._config
        if done == 0 or not batch.whole:
            raise ConfigurationError(uninformative(batch, config.rounds))
        message = f"the fit ends after {done} of {config.steps} steps: "
        warnings.warn(message + uninformative(batch, config.rounds), ConvergedWarning, stacklevel=2)

    async def _validated(self, state: TrainerState) -> dict[str, float]:
        """Trackers call it ``val/…``; on the checkpoint it is ``eval/…``, from the next step on."""
        checkpoint = state.checkpoint or BASE
        config = self._config
        greedy = self._now.sampling.but(temperature=0.0)
        job = self._job(self._client, config.validation_sampling or greedy, config.validation_group)
        batch = await job.run(self._validation, checkpoint=checkpoint)
        solved, mine = passed(batch, config.pass_at_k), own(batch, state)
        found = {f"eval/{name}": value for name, value in (mine | solved).items()}
        self._evaluated = {state.checkpoint: found} if mine else {}
        rewards = {of_step(name): name for name in (REWARD, "reward/std")}
        seen = {f"val/{rewards.get(n, n)}": value for n, value in batch.metrics().items()}
        seen |= {f"val/{name}": value for name, value in solved.items()}
        self._log(state.run_step, seen)
        return seen

    def _job(self, sampler: Sampler, sampling: Sampling, group: int) -> Job[T]:
        return Job(
            sampler,
            self._rollout,
            group=group,
            sampling=sampling,
            max_concurrent=self._config.max_concurrent,
            rollout_timeout=self._config.rollout_timeout,
            max_model_length=self._config.max_model_length,
        )

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._trackers.log(step, metrics)
