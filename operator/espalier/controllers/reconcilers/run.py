"""Reconciles a TrainingRun: its trainer's assignment, its runner's Job, its status."""

from __future__ import annotations

from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.controllers.context import Services
from espalier.controllers.observed.taskset_maps import Tasksets
from espalier.core.checkpoints.commits import run_identity
from espalier.core.manifests.runner import pod_fingerprint, runner_job
from espalier.core.names import runner_name
from espalier.core.pods import pods
from espalier.core.pods.pods import RUN_GENERATION, RUN_POD
from espalier.core.run import idle
from espalier.core.run import run as runs
from espalier.core.run import turn as turns
from espalier.core.run.run_view import RunView
from espalier.kube.objects import Key

RETRY_SECONDS = 1.0


class RunReconciler:
    """Observes a run, its model, head, trainer and runner; acts on trainer and runner."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasksets = Tasksets(services.cluster)

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a run; seconds until it should be looked at again."""
        run = self._services.snapshot.run(key.namespace, key.name)
        body = self._services.snapshot.cache.get(key)
        if run is None or body is None or run.metadata.deletion_timestamp is not None:
            self._tasksets.forget(key)
            self._services.hindrances.forget(key)
            return None
        model = self._services.snapshot.model(key.namespace, run.spec.model_ref.name)
        assigned, again = await self._assign(run, model)
        trained, heard = await self._trained(run) if assigned else (None, None)
        tasks, looked = await self._tasksets.look(run, self._runner(run))
        asked = await self._ask(key, run)
        quiet, later = await self._quiet(run, model) if assigned else (None, None)
        view = self._view(run, model, assigned=assigned, trained=trained, tasks=tasks, quiet=quiet)
        decision = runs.decide(view, self._services.now())
        if model is not None:
            await self._drive(run, model, decision.runner)
        if await self._services.writer.write("TrainingRun", body, decision.status):
            before, after = run.status.conditions, decision.status.conditions
            await self._services.writer.announce("TrainingRun", body, before, after)
        waits = (again, heard, looked, asked, later, decision.again_seconds)
        delays = [seconds for seconds in waits if seconds is not None]
        return min(delays, default=None)

    async def _assign(
        self, run: TrainingRun, owner: TrainableModel | None
    ) -> tuple[bool, float | None]:
        """Whether the trainer trains this run as its head says; and when to try again."""
        namespace, model = run.metadata.namespace, run.spec.model_ref.name
        turn = turns.active(self._services.snapshot.runs(namespace, model))
        trainer = self._trainer(namespace, model)
        if turn is None or turn.metadata.uid != run.metadata.uid:
            return False, None
        if trainer is None or owner is None:
            return False, None
        leader = self._services.snapshot.leader(namespace, model)
        lineage = self._services.snapshot.lineage(namespace, model)
        wanted = turns.assignment(run, owner, leader, lineage)
        if wanted is None:
            return False, None
        trainers = self._services.trainers
        if trainers.acknowledged(namespace, model, trainer, wanted):
            return True, None
        assigned = await trainers.assign(namespace, model, trainer, wanted)
        if trainers.unreadable(namespace, model, wanted.base) is not None:
            self._services.enqueue(Key("Checkpoint", namespace, wanted.base_name))
        return assigned, None if assigned else RETRY_SECONDS

    async def _trained(self, run: TrainingRun) -> tuple[int | None, float | None]:
        """Steps that the trainer has on record once the runner ended; and when to ask again.

        The commits read so far do not tell: after a start of the operator there are none.
        """
        namespace, model = run.metadata.namespace, run.spec.model_ref.name
        job, trainer = self._runner(run), self._trainer(namespace, model)
        over = job is not None and (job.finished or pods.outlived(self._runner_pods(run)))
        if not over or trainer is None or run.status.step >= run.spec.steps:
            return None, None
        state = await self._services.trainers.state(namespace, model, trainer)
        if state is None or state.run != run_identity(run.metadata.name, run.metadata.uid):
            return None, RETRY_SECONDS
        return state.run_step, None

    async def _ask(self, key: Key, run: TrainingRun) -> float | None:
        """Learn why the runner does not start where neither Job nor pod says it."""
        job, found = self._runner(run), self._runner_pods(run)
        silent = {"Pod": [pod.uid for pod in pods.live(found) if pods.is_silent(pod)]}
        if job is not None and not found and not (job.finished or job.suspended):
            silent["Job"] = [job.uid]
        return await self._services.hindrances.ask(key, silent)

    def _runner(self, run: TrainingRun) -> pods.Job | None:
        name = runner_name(run.metadata.name)
        return self._services.snapshot.job(run.metadata.namespace, name)

    def _runner_pods(self, run: TrainingRun) -> list[pods.Pod]:
        namespace, name = run.metadata.namespace, run.metadata.name
        return self._services.snapshot.pods(namespace, "runner", run=name)

    async def _quiet(
        self, run: TrainingRun, model: TrainableModel | None
    ) -> tuple[float | None, float | None]:
        """For how long nobody has called the run's trainer, if that matters; when to ask again."""
        limit = idle.limit(run, model)
        namespace, name = run.metadata.namespace, run.spec.model_ref.name
        trainer = self._trainer(namespace, name)
        if not limit or trainer is None:
            return None, None
        return await self._services.trainers.quiet(namespace, name, trainer, limit)

    def _trainer(self, namespace: str, model: str) -> pods.Pod | None:
        found = pods.live(self._services.snapshot.pods(namespace, "trainer", model=model))
        return next((pod for pod in found if pod.ready), None)

    def _view(
        self,
        run: TrainingRun,
        model: TrainableModel | None,
        *,
        assigned: bool,
        trained: int | None,
        tasks: str,
        quiet: float | None,
    ) -> RunView:
        namespace, name = run.metadata.namespace, run.metadata.name
        owner = run.spec.model_ref.name
        ledger = self._services.streams.ledger(namespace, owner)
        rollouts = pods.live(self._services.snapshot.pods(namespace, "rollout", model=owner))
        hindrances, job = self._services.hindrances, self._runner(run)
        return RunView(
            run=run,
            model=model,
            head=self._services.snapshot.leader(namespace, owner),
            siblings=self._services.snapshot.runs(namespace, owner),
            checkpoints=self._services.snapshot.made_by(namespace, owner, run.metadata.uid),
            assigned=assigned,
            problem=ledger.problem or self._services.trainers.refusal(namespace, owner),
            runner=job,
            runner_pods=pods.hindered(self._runner_pods(run), hindrances.of(namespace, "Pod")),
            counted=ledger.counted.get(run_identity(name, run.metadata.uid), 0),
            trained=trained,
            rollouts=sum(pod.started for pod in rollouts),
            pod=pod_fingerprint(run),
            tasks=tasks,
            hindrance=hindrances.of(namespace, "Job").get(job.uid) if job is not None else None,
            quiet=quiet,
        )

    async def _drive(
        self, run: TrainingRun, model: TrainableModel, action: runs.RunnerAction
    ) -> None:
        """Make or remove the runner's Job; a new one waits until the old one is gone."""
        key = Key("Job", run.metadata.namespace, runner_name(run.metadata.name))
        if action == "Create":
            job = runner_job(run, model, self._services.settings)
            annotations = job["metadata"].setdefault("annotations", {})
            annotations[RUN_GENERATION] = str(run.metadata.generation)
            annotations[RUN_POD] = pod_fingerprint(run)
            await self._services.cluster.create("Job", job)
        elif action == "Delete":
            found = self._services.snapshot.job(key.namespace, key.name)
            await self._services.cluster.delete(key, uid=found.uid if found else None)
