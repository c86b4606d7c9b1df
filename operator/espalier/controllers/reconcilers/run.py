"""Reconciles a TrainingRun: its trainer's assignment, its runner's Job, its status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.controllers.observed.blockers import Blockers
from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.needed_objects import NeededObjects
from espalier.controllers.observed.queues import Queues
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.controllers.peers.assignments import Assignments
from espalier.controllers.peers.commit_streams import CommitStreams
from espalier.core.checkpoints import run_tokens
from espalier.core.checkpoints.commits import run_identity
from espalier.core.gitowner import git_owner
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.runner import pod_fingerprint, runner_job
from espalier.core.model import reads
from espalier.core.names import runner_name
from espalier.core.pods import pods
from espalier.core.pods.pods import RUN_GENERATION, RUN_POD
from espalier.core.run import continued, expiry, idle
from espalier.core.run import run as runs
from espalier.core.run import turn as turns
from espalier.core.run.continued import counted_as
from espalier.core.run.run_view import RunView
from espalier.core.run.runner_job import RunnerAction
from espalier.core.run.runner_needs import Lack
from espalier.kube.cluster import Cluster
from espalier.kube.objects import Body, ObjectKey

RETRY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class RunReconciler:
    """Observes a run, its model, head, trainer and runner; acts on trainer and runner."""

    cluster: Cluster
    needed: NeededObjects
    lister: Lister
    writer: StatusWriter
    trainers: Assignments
    streams: CommitStreams
    blockers: Blockers
    queues: Queues
    settings: ChildSettings
    now: Callable[[], str]
    enqueue: Callable[[ObjectKey], None]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """One pass over a run; seconds until it should be looked at again."""
        run = self.lister.run(key.namespace, key.name)
        body = self.lister.body(key)
        if run is None or body is None or run.metadata.deletion_timestamp is not None:
            self.needed.forget(key)
            self.blockers.forget(key)
            return None
        model = self.lister.model(key.namespace, run.spec.model_ref.name)
        assigned, again = await self._assign(run, model)
        trained, heard = await self._trained(run) if assigned else (None, None)
        lack, looked = await self.needed.look(run, self._runner(run))
        asked = await self._ask(key, run)
        quiet, later = await self._quiet(run, model) if assigned else (None, None)
        view = self._view(run, model, assigned=assigned, trained=trained, lack=lack, quiet=quiet)
        live = await self._live(run)
        view = replace(view, owner=git_owner(live["metadata"]) if live is not None else None)
        decision = runs.decide(view, self.now())
        if model is not None:
            await self._drive(run, model, decision.runner)
        if await self.writer.write("TrainingRun", body, decision.status):
            before, after = run.status.conditions, decision.status.conditions
            await self.writer.announce("TrainingRun", body, before, after)
        if decision.expired and live is not None and _generation(live) == run.metadata.generation:
            await self.cluster.delete(key, uid=run.metadata.uid)
            return None
        waits = (again, heard, looked, asked, later, decision.again_seconds)
        delays = [seconds for seconds in waits if seconds is not None]
        return min(delays, default=None)

    async def _live(self, run: TrainingRun) -> Body | None:
        """A run that has ended and may expire, as it is now, with who manages its fields."""
        if run.spec.ttl_seconds_after_finished is None or expiry.finished(run) is None:
            return None
        return await self.cluster.get(
            ObjectKey("TrainingRun", run.metadata.namespace, run.metadata.name)
        )

    async def _assign(
        self, run: TrainingRun, owner: TrainableModel | None
    ) -> tuple[bool, float | None]:
        """Whether the trainer trains this run as its head says; and when to try again."""
        namespace, model = run.metadata.namespace, run.spec.model_ref.name
        turn = turns.active(self.lister.runs(namespace, model))
        trainer = self.lister.ready_trainer(namespace, model)
        if turn is None or turn.metadata.uid != run.metadata.uid:
            return False, None
        made = self._made(run)
        if trainer is None or owner is None or continued.unknown(run, made):
            return False, None
        leader = self.lister.leader(namespace, model)
        lineage = self.lister.lineage(namespace, model)
        wanted = turns.assignment(run, owner, leader, lineage)
        if wanted is None or not reads.sees(trainer, self.lister.reads(owner, [run])):
            # It is being replaced by one that sees what the run names.
            return False, None
        trainers = self.trainers
        if trainers.acknowledged(namespace, model, trainer, wanted):
            return True, None
        known = self.streams.ledger(namespace, model).caught_up
        assigned = await trainers.assign(namespace, model, trainer, wanted, caught_up=known)
        if trainers.unreadable(namespace, model, wanted.base) is not None:
            self.enqueue(ObjectKey("Checkpoint", namespace, wanted.base_name))
        return assigned, None if assigned else RETRY_SECONDS

    async def _trained(self, run: TrainingRun) -> tuple[int | None, float | None]:
        """The steps in the trainer's log once the runner has ended, and when to ask again.

        The commits read so far do not tell: after a start of the operator there are none.
        """
        namespace, model = run.metadata.namespace, run.spec.model_ref.name
        job, trainer = self._runner(run), self.lister.ready_trainer(namespace, model)
        over = job is not None and (job.finished or pods.outlived(self._runner_pods(run)))
        if not over or trainer is None or run.status.step >= run.spec.steps:
            return None, None
        state = await self.trainers.state(namespace, model, trainer)
        if state is None or state.run != run_identity(run.metadata.name, counted_as(run)):
            return None, RETRY_SECONDS
        return state.run_step, None

    async def _ask(self, key: ObjectKey, run: TrainingRun) -> float | None:
        """Learn why the runner does not start where neither Job nor pod says it."""
        job, found = self._runner(run), self._runner_pods(run)
        silent = {"Pod": [pod.uid for pod in pods.live(found) if pods.is_silent(pod)]}
        if job is not None and not found and not (job.finished or job.suspended):
            silent["Job"] = [job.uid]
        stuck = await self.blockers.ask(key, silent)
        places = [pod.place for pod in found] + ([job.place] if job is not None else [])
        queued = await self.queues.ask(key.namespace, places)
        return min((s for s in (stuck, queued) if s is not None), default=None)

    def _runner(self, run: TrainingRun) -> pods.JobState | None:
        name = runner_name(run.metadata.name)
        return self.lister.job(run.metadata.namespace, name)

    def _made(self, run: TrainingRun) -> Sequence[Checkpoint]:
        """The checkpoints of the run, and of the one that it continues."""
        namespace, model = run.metadata.namespace, run.spec.model_ref.name
        return continued.own(run, self.lister.made_by(namespace, model, counted_as(run)))

    def _runner_pods(self, run: TrainingRun) -> list[pods.Pod]:
        namespace, name = run.metadata.namespace, run.metadata.name
        return self.lister.pods(namespace, "runner", run=name)

    async def _quiet(
        self, run: TrainingRun, model: TrainableModel | None
    ) -> tuple[float | None, float | None]:
        """Seconds since the last call of the run's trainer, if that matters; when to ask again."""
        limit = idle.limit(run, model)
        namespace, name = run.metadata.namespace, run.spec.model_ref.name
        trainer = self.lister.ready_trainer(namespace, name)
        if not limit or trainer is None:
            return None, None
        return await self.trainers.quiet(namespace, name, trainer, limit)

    def _view(
        self,
        run: TrainingRun,
        model: TrainableModel | None,
        *,
        assigned: bool,
        trained: int | None,
        lack: Lack | None,
        quiet: float | None,
    ) -> RunView:
        namespace, name = run.metadata.namespace, run.metadata.name
        owner = run.spec.model_ref.name
        ledger = self.streams.ledger(namespace, owner)
        identity = run_identity(name, counted_as(run))
        rollouts = self.lister.pods(namespace, "rollout", model=owner)
        trainers = self.lister.pods(namespace, "trainer", model=owner)
        runners = self._runner_pods(run)
        working = [*trainers, *rollouts, *runners]
        blockers, job, queue = self.blockers, self._runner(run), self.queues.of(namespace)
        return RunView(
            run=run,
            model=model,
            head=self.lister.leader(namespace, owner),
            siblings=self.lister.runs(namespace, owner),
            checkpoints=self._made(run),
            assigned=assigned,
            problem=ledger.problem or self.trainers.refusal(namespace, owner),
            runner=job,
            runner_pods=pods.in_queue(
                pods.with_blockers(runners, blockers.of(namespace, "Pod")), queue
            ),
            counted=ledger.counted.get(identity, 0),
            tokens=ledger.tokens.get(identity, run_tokens.NONE),
            gpus=pods.gpus_in_use(working),
            images={pod.role: pod.image for pod in pods.live(working) if pod.image},
            trained=trained,
            rollouts=sum(pod.started for pod in pods.live(rollouts)),
            pod=pod_fingerprint(run),
            lack=lack,
            blocker=blockers.of(namespace, "Job").get(job.uid) if job is not None else None,
            queued=queue.says(job.place) if job is not None else None,
            quiet=quiet,
        )

    async def _drive(self, run: TrainingRun, model: TrainableModel, action: RunnerAction) -> None:
        """Make or remove the runner's Job; a new one waits until the old one is gone."""
        key = ObjectKey("Job", run.metadata.namespace, runner_name(run.metadata.name))
        if action == "Create":
            job = runner_job(run, model, self.settings)
            annotations = job["metadata"].setdefault("annotations", {})
            annotations[RUN_GENERATION] = str(run.metadata.generation)
            annotations[RUN_POD] = pod_fingerprint(run)
            await self.cluster.create("Job", job)
        elif action == "Delete":
            found = self.lister.job(key.namespace, key.name)
            await self.cluster.delete(key, uid=found.uid if found else None)


def _generation(body: Body) -> int:
    generation: int = body["metadata"].get("generation", 0)
    return generation
