"""The loop around a TrainingClient: sample groups, train on them, validate now and then."""

from __future__ import annotations

import asyncio
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from espalier.api.metric_names import REWARD, STEP_REWARD, of_step
from espalier.api.wire import TrainerState
from espalier.client.errors import ConfigurationError
from espalier.client.sampling import Sampling
from espalier.client.training_client import TrainingClient
from espalier.core.names import BASE, parse_checkpoint_name
from espalier.loop.batch import Batch
from espalier.loop.job import Job
from espalier.loop.precomputed import Source, missing_fraction
from espalier.loop.session import RolloutFunction, Task
from espalier.tracking.trackers import Tracker, Trackers

T = TypeVar("T", bound=Task)


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
        self._source: Source = "Precomputed" if config.use_precomputed_advantage else "Estimated"
        self._train = self._job(rollout, config.sampling)
        greedy = config.sampling.but(temperature=0.0)
        self._validate = self._job(rollout, config.validation_sampling or greedy)
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
        while True:
            state = await self._client.state()
            if state.run_step >= config.steps:
                return last
            if state.pending:
                # Of a process that was killed before its optimizer step: its samples are gone.
                await self._client.zero_grad()
            batch = await self._sampled(state)
            if batch is None:
                return last
            last = await self._step(state, batch)
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

    async def _sampled(self, state: TrainerState) -> Batch | None:
        """Rollouts of which some can be learnt from; None when the model has converged."""
        config, done = self._config, state.run_step
        batch = Batch([])
        for attempt in range(config.rounds):
            tasks = self._chosen((done + attempt) * config.tasks_per_step)
            found = await self._train.run(tasks, checkpoint=state.checkpoint or BASE)
            batch = Batch(batch.groups + found.groups)
            if batch.trajectories(advantages=self._source):
                return batch
        if done == 0 or not batch.whole:
            raise ConfigurationError(_uninformative(batch, config.rounds))
        message = f"the fit ends after {done} of {config.steps} steps: "
        warnings.warn(
            message + _uninformative(batch, config.rounds), ConvergedWarning, stacklevel=2
        )
        return None

    async def _step(self, state: TrainerState, batch: Batch) -> dict[str, float]:
        config, done = self._config, state.run_step
        seen = batch.metrics()
        if self._source == "Precomputed":
            seen["advantage/missing_fraction"] = missing_fraction(batch.whole)
        gradients = self._client.forward_backward(
            batch.trajectories(advantages=self._source),
            loss_fn=config.loss_fn,
            loss_fn_config=config.loss_fn_config,
        )
        seen |= (await gradients).metrics
        cursor = {"next_task": (done + 1) * config.tasks_per_step, "fit": self.settings()}
        own = {name: value for name, value in seen.items() if ":" not in name}
        measured = self._evaluated.get(state.checkpoint, {}) | _own(batch, state)
        await self._client.optim_step(
            learning_rate=config.learning_rate,
            metrics=own,
            measured={state.checkpoint: measured} if measured else None,
            cursor=cursor,
        )
        self._evaluated = {}
        self._log(done + 1, seen)
        return seen

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

    def _chosen(self, first: int) -> list[T]:
        count = self._config.tasks_per_step
        return [self._tasks[(first + offset) % len(self._tasks)] for offset in range(count)]

    def _job(self, rollout: RolloutFunction[T], sampling: Sampling) -> Job[T]:
        return Job(
            self._client,
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
