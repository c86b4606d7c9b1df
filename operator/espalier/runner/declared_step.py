"""What a step of a declared run is made of, as its spec says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from espalier.api.run.schedule import Schedule as ScheduleSpec
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire.gradients import ForwardBackwardRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import TrainerState
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.core.names import parse_checkpoint_name
from espalier.core.run.learning_rate import learning_rate_at
from espalier.environments.digest import FIELD, Mark
from espalier.loop.custom_loss import CustomGradients
from espalier.loop.minibatches import Uses
from espalier.loop.recipe import Attempt
from espalier.loop.schedule import Asynchronous, Place, Schedule, Streaming, Synchronous
from espalier.loop.session import Sampler
from espalier.rewards.figures import told
from espalier.runner import error_budget, prometheus
from espalier.runner.answers import answered
from espalier.runner.custom_loss.declared_loss import DeclaredLoss
from espalier.runner.group_sampling import Outcome, Skipped
from espalier.runner.journal import Journal
from espalier.runner.objective import objective, reference
from espalier.runner.opened_taskset import OpenedTaskset
from espalier.runner.rewards import Group, common_size, kept, measured, metrics, payloads
from espalier.runner.rollout_log import kept as kept_rollouts
from espalier.runner.run_trackers import RunTrackers
from espalier.runner.scored_by import ScoredBy


def open_schedule(spec: ScheduleSpec) -> Schedule[Outcome]:
    """The schedule that a spec names."""
    if spec.mode == "Streaming" and spec.minibatches is not None:
        return Streaming(spec.minibatches)
    if spec.mode == "Asynchronous" and spec.max_staleness_steps is not None:
        return Asynchronous(spec.max_staleness_steps)
    return Synchronous()


class DeclaredStep:
    """The recipe of the next step of a run (``loop.recipe.Recipe``).

    Args:
        client: samples groups.
        spec: of the run, as it is now.
        taskset: the run's, opened.
        mark: of its tasks, which goes with every step.
        journal: where scorers' failures are reported.
        trackers: whose own metrics come with a step.
        loss: of the run, where the user wrote it.
    """

    def __init__(
        self,
        client: Sampler,
        spec: TrainingRunSpec,
        taskset: OpenedTaskset,
        *,
        mark: Mark,
        journal: Journal,
        trackers: RunTrackers,
        loss: DeclaredLoss | None = None,
    ) -> None:
        self._client = client
        self._spec = spec
        self._taskset = taskset
        self._mark = mark
        self._journal = journal
        self._trackers = trackers
        self._loss = loss

    @property
    def uses(self) -> Uses:
        """As ``batch`` says."""
        return Uses(self._spec.batch.minibatches, self._spec.batch.epochs, self._spec.seed or 0)

    def place(self, state: TrainerState, attempt: Attempt[Outcome]) -> Place:
        """The next ``groupsPerStep`` tasks for each minibatch, in their order, around and around.

        A round that resamples takes as many as lack.
        """
        count = self._spec.groups_per_step * self._spec.batch.minibatches
        place = Place(
            term=state.term,
            run_step=state.run_step,
            checkpoint=state.checkpoint,
            count=count,
            round=attempt.rounds,
            take=count,
            recipe=(
                self._spec.group_size,
                self._spec.sampling,
                self._spec.limits,
                ScoredBy.of(self._spec),
            ),
            uses=self.uses,
            left=self._spec.steps - state.run_step,
        )
        if self._spec.group_filter.resamples(attempt.rounds):
            return replace(place, take=place.wanted - len(self._kept(attempt.groups)))
        return place

    async def play(self, numbers: Sequence[int], checkpoint: str) -> Sequence[Outcome]:
        """Groups of the tasks with these numbers."""
        outcomes = await self._taskset.sample(self._client, numbers, self._spec, checkpoint)
        for one in outcomes:
            if isinstance(one, Skipped):
                self._journal.event("prompt-too-long", task=one.task.id, detail=one.detail)
                continue
            for entry in told(one.task.id, one.scores):
                self._journal.event("scorer-error", **entry)
                prometheus.ERRORS.labels(entry["cause"]).inc(entry["count"])
            prometheus.RETRIES.inc(one.retries)
        return outcomes

    def chosen(self, groups: Sequence[Outcome], place: Place) -> Sequence[Outcome]:
        """The groups that ``groupFilter`` keeps, at most ``groupsPerStep`` for each minibatch."""
        rules = self._spec.group_filter
        found = self._kept(groups)[: place.wanted]
        fewest = rules.min_groups * place.minibatches
        needed = place.wanted if rules.resamples(place.round + 1) else fewest
        return found if len(found) >= needed else []

    def _kept(self, groups: Sequence[Outcome]) -> list[Group]:
        return kept(sampled(groups), self._spec.group_filter, self._spec.advantage.estimator)

    def inputs(self, chosen: Sequence[Outcome]) -> Sequence[Sequence[TrajectoryPayload]]:
        """The rollouts of each group, named by its place among the chosen ones."""
        return [payloads(group, str(number)) for number, group in enumerate(sampled(chosen))]

    def gradients(
        self, inputs: Sequence[TrajectoryPayload]
    ) -> ForwardBackwardRequest | CustomGradients:
        """By the run's loss and advantage."""
        if self._loss is not None:
            advantage = self._spec.advantage
            return CustomGradients(
                inputs,
                self._loss.differentiate,
                advantage.estimator,
                advantage.scale,
                reference(self._spec),
                common_size(inputs),
            )
        return ForwardBackwardRequest(
            inputs=list(inputs),
            group_size=common_size(inputs),
            **objective(self._spec),
        )

    def step(self, state: TrainerState, attempt: Attempt[Outcome]) -> OptimStepRequest:
        """By the run's optimizer, with the figures and rollouts of everything sampled.

        Raises:
            UserError: ``ErrorBudgetExceeded``: too many of the rollouts failed.
        """
        step = state.run_step + 1
        groups, log = sampled(attempt.groups), self._spec.rollout_log
        error_budget.check(self._spec.rollout_errors, groups, state.cursor, step)
        failed = error_budget.total(state.cursor, groups)
        return OptimStepRequest(
            learning_rate=learning_rate_at(self._spec, step),
            **self._spec.optimizer.config(),
            metrics=figures(attempt, self._spec.taskset)
            | attempt.staleness_metrics()
            | attempt.seconds
            | self._trackers.metrics(),
            measured=_measured(state, groups),
            cursor={
                "run_step": step,
                "next_task": step // self.uses.epochs * self._spec.groups_per_step,
                FIELD: self._mark.wire(),
                **({error_budget.FIELD: failed} if failed else {}),
            },
            **asdict(kept_rollouts(log, groups, sampled(attempt.trained), step)),
            taskset=self._taskset.used,
        )


def sampled(outcomes: Sequence[Outcome]) -> list[Group]:
    """The groups among what came of tasks."""
    return [one for one in outcomes if isinstance(one, Group)]


def figures(attempt: Attempt[Outcome], taskset: Taskset | None) -> dict[str, float]:
    """The metrics of everything sampled so far."""
    groups = sampled(attempt.groups)
    dropped = len(groups) - len(attempt.trained)
    seen = metrics(groups, dropped, len(attempt.groups) - len(groups))
    return seen | answered(groups, taskset)


def _measured(state: TrainerState, groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """What the samples say of each checkpoint that they are of.

    The base, or another model's checkpoint, has no place in the model's tree.
    """
    by_checkpoint: dict[str, list[Group]] = {}
    for group in groups:
        by_checkpoint.setdefault(group.checkpoint, []).append(group)
    found = {
        name: measured(of_it)
        for name, of_it in by_checkpoint.items()
        if parse_checkpoint_name(state.model, name) is not None
    }
    return {name: rewards for name, rewards in found.items() if rewards}
