"""The loop around a TrainingClient: sample groups, train on them, validate now and then."""

from __future__ import annotations

import asyncio
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from espalier.api.metric_names import REWARD, STEP_REWARD, of_step
from espalier.api.wire import (
    ForwardBackwardRequest,
    ForwardBackwardResult,
    OptimStepRequest,
    TrainerState,
    Wire,
)
from espalier.client.errors import ConfigurationError
from espalier.client.gateway import CommittedStep
from espalier.client.rollout import Rollout
from espalier.client.sampling import Sampling
from espalier.client.training_client import TrainingClient
from espalier.core.names import BASE, parse_checkpoint_name
from espalier.loop.batch import Batch
from espalier.loop.job import Job
from espalier.loop.precomputed import Source, missing_fraction, trajectories
from espalier.loop.schedule import Place, Schedule, Synchronous
from espalier.loop.session import RolloutFunction, Sampler, Task
from espalier.loop.step_clock import StepClock, TimedSampler
from espalier.loop.steps import Attempt, Steps
from espalier.tracking.trackers import Tracker, Trackers

T = TypeVar("T", bound=Task)
Group = list[Rollout]


@dataclass(frozen=True)
class FitConfig:
    """All settings of a fit; the whole of it is kept with every checkpoint and told to trackers.

    Attributes:
        steps: optimizer steps to take in all, those before a resume included.
        group: rollouts per task.
        tasks_per_step: tasks sampled for one step.
        use_precomputed_advantage: rollouts bring their advantages, token by token.
        sampling: of training; with a loss that compares policies its only choice is a temperature
            above 0, at which the trainer computes too.
        validate_every: steps between validations; 0: none.
        val_before_train: validate before the first step; with ``val_only`` nothing else is done.
        resume_from: id of the checkpoint to go on from; empty: from where the trainer is. Once the
            fit has taken a step from there it prefers its own newer checkpoints: started again, it
            goes on where the trainer is.
        rounds: of sampling for one step while no group has rewards that differ. When all are
            used up, a model that has taken no step yet cannot learn these tasks and the fit fails;
            a later one has nothing more to learn from them, and the fit ends early.
    """

    steps: int
    learning_rate: float
    group: int = 8
    tasks_per_step: int = 8
    loss_fn: str = "importance_sampling"
    loss_fn_config: Mapping[str, float] | None = None
    use_precomputed_advantage: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    validation_sampling: Sampling | None = None
    validate_every: int = 0
    val_before_train: bool = False
    val_only: bool = False
    resume_from: str = ""
    max_concurrent: int = 64
    max_model_length: int | None = None
    rollout_timeout: float | None = None
    rounds: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "group", "tasks_per_step", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.group == 1 and not self.use_precomputed_advantage:
            raise ConfigurationError(
                "group is 1: a rollout alone has nothing to be compared with and its advantage is "
                "always 0; give at least 2, or use_precomputed_advantage"
            )
        drawn = self.sampling.drawn()
        shifted = [*drawn.shifted_by, *([] if drawn.temperature else ["temperature 0"])]
        if shifted and self.loss_fn != "cross_entropy":
            raise ConfigurationError(
                f"sampling has {', '.join(shifted)}: its log-probs are of another distribution "
                "than the policy's, and every ratio would be wrong; sample for training with a "
                "temperature above 0 alone (validation_sampling may have them), or train with "
                "cross_entropy"
            )


class ConvergedWarning(UserWarning):
    """A fit ended before its last step: every rollout of a task now gets the same reward."""


class Fit(Generic[T]):
    """Trains a model on tasks until it has taken ``config.steps`` steps.

    It keeps nothing that it needs: where it stands is read from the trainer, so that a fit that
    is started again after a crash goes on at the next step. It samples the checkpoint that the
    trainer stands on, whatever the head serves, so that rewards are of known weights.

    Args:
        client: of the model.
        tasks: taken in order, around and around.
        rollout: plays one task and returns its reward.
        config: everything else.
        validation: tasks that are never trained on.
        trackers: told of every step.
        schedule: how sampling and training take turns; Synchronous if None.
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
    ) -> None:
        if not tasks:
            raise ConfigurationError("tasks is empty: there is nothing to train on")
        if (config.val_before_train or config.val_only or config.validate_every) and not validation:
            raise ConfigurationError("validation is empty, and the configuration asks for it")
        self._client = client
        self._tasks = tasks
        self._validation = validation
        self._config = config
        self._trackers = Trackers(trackers)
        self._schedule = schedule or Synchronous[Group]()
        self._source: Source = "Precomputed" if config.use_precomputed_advantage else "Estimated"
        self._clock = StepClock()
        timed = TimedSampler(client, self._clock)
        self._train = self._job(timed, rollout, config.sampling)
        greedy = config.sampling.but(temperature=0.0)
        self._validate = self._job(client, rollout, config.validation_sampling or greedy)
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
        return {"model": self._client.model, **dataclasses.asdict(self._config)}

    async def _run(self) -> dict[str, float]:
        config, last = self._config, dict[str, float]()
        await self._resume()
        if config.val_before_train or config.val_only:
            last = await self._validated(await self._client.state())
            if config.val_only:
                return last
        self._clock.lap()
        steps = Steps[Group](_Commands(self._client), self._schedule, self._clock)
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

    def place(self, state: TrainerState, attempt: Attempt[Group]) -> Place:
        """See ``loop.steps.Recipe``."""
        count = self._config.tasks_per_step
        checkpoint = state.checkpoint or BASE
        return Place(state.term, state.run_step, checkpoint, count, attempt.rounds, count)

    async def play(self, numbers: Sequence[int], checkpoint: str) -> Sequence[Group]:
        """See ``loop.steps.Recipe``."""
        tasks = [self._tasks[number % len(self._tasks)] for number in numbers]
        return (await self._train.run(tasks, checkpoint=checkpoint)).groups

    def chosen(self, groups: Sequence[Group], rounds: int) -> Sequence[Group]:
        """See ``loop.steps.Recipe``."""
        batch = Batch(list(groups))
        return batch.whole if self._source == "Precomputed" else batch.informative

    def gradients(self, chosen: Sequence[Group]) -> ForwardBackwardRequest:
        """See ``loop.steps.Recipe``."""
        config = self._config
        return ForwardBackwardRequest(
            inputs=list(trajectories(chosen, self._source)),
            loss_fn=config.loss_fn,
            loss_fn_config=dict(config.loss_fn_config) if config.loss_fn_config else None,
        )

    def step(self, state: TrainerState, attempt: Attempt[Group]) -> OptimStepRequest:
        """See ``loop.steps.Recipe``."""
        batch, done = Batch(attempt.groups), state.run_step
        seen = batch.metrics() | attempt.staleness_metrics() | attempt.seconds
        if self._source == "Precomputed":
            seen["advantage/missing_fraction"] = missing_fraction(batch.whole)
        measured = self._evaluated.get(state.checkpoint, {}) | _own(batch, state)
        trained = {id(rollout) for group in attempt.trained for rollout in group}
        return OptimStepRequest(
            learning_rate=self._config.learning_rate,
            metrics=seen,
            measured={state.checkpoint: measured} if measured else {},
            cursor={"next_task": (done + 1) * self._config.tasks_per_step, "fit": self.settings()},
            rollouts=[r.record(trained=id(r) in trained) for r in batch.rollouts],
        )

    def _converged(self, done: int, batch: Batch) -> None:
        """Ends a fit whose groups all have equal rewards; an error where it never learnt."""
        config = self._config
        if done == 0 or not batch.whole:
            raise ConfigurationError(_uninformative(batch, config.rounds))
        message = f"the fit ends after {done} of {config.steps} steps: "
        warnings.warn(
            message + _uninformative(batch, config.rounds), ConvergedWarning, stacklevel=2
        )

    async def _validated(self, state: TrainerState) -> dict[str, float]:
        """Trackers call it ``val/…``; on the checkpoint it is ``eval/…``, from the next step on."""
        checkpoint = state.checkpoint or BASE
        batch = await self._validate.run(self._validation, group=1, checkpoint=checkpoint)
        found = {f"eval/{name}": value for name, value in _own(batch, state).items()}
        self._evaluated = {state.checkpoint: found} if found else {}
        rewards = {of_step(name): name for name in (REWARD, "reward/std")}
        seen = {f"val/{rewards.get(n, n)}": value for n, value in batch.metrics().items()}
        self._log(state.run_step, seen)
        return seen

    def _job(self, sampler: Sampler, rollout: RolloutFunction[T], sampling: Sampling) -> Job[T]:
        return Job(
            sampler,
            rollout,
            group=self._config.group,
            sampling=sampling,
            max_concurrent=self._config.max_concurrent,
            rollout_timeout=self._config.rollout_timeout,
            max_model_length=self._config.max_model_length,
        )

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._trackers.log(step, metrics)


def _own(batch: Batch, state: TrainerState) -> dict[str, float]:
    """What the batch says of the checkpoint that was sampled, if that is the model's own."""
    if parse_checkpoint_name(state.model, state.checkpoint) is None:
        return {}
    return batch.measured().get(state.checkpoint, {})


def _uninformative(batch: Batch, rounds: int) -> str:
    seen = batch.metrics()
    failed = next((r.error for group in batch.groups for r in group if r.error), "")
    if failed and not batch.whole:
        return f"in {rounds} rounds every group had a failed rollout, the first: {failed}"
    mean = seen.get(STEP_REWARD, 0.0)
    return (
        f"in {rounds} rounds every group had equal rewards (mean {mean:.3g}): "
        "choose tasks that the model solves sometimes, or raise group"
    )


class _Commands:
    """A TrainingClient as the loop commands it; its own queue keeps term and keys."""

    def __init__(self, client: TrainingClient) -> None:
        self._client = client

    async def zero_grad(self, *, term: int = 0) -> TrainerState:
        """Drops gradients."""
        return await self._client.zero_grad()

    async def forward_backward(
        self, request: ForwardBackwardRequest, *, term: int = 0
    ) -> ForwardBackwardResult:
        """Adds gradients."""
        given = _set_by_recipe(request)
        return await self._client.forward_backward(given.pop("inputs"), **given)

    async def optim_step(self, request: OptimStepRequest, *, term: int = 0) -> CommittedStep:
        """Takes the step."""
        return await self._client.optim_step(**_set_by_recipe(request))


def _set_by_recipe(request: Wire) -> dict[str, Any]:
    """The fields that ``Fit`` gives; the client's methods have the same names and defaults."""
    return {name: getattr(request, name) for name in request.model_fields_set}
