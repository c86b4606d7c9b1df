"""The state of one model's training: where it stands, and the calls that change it.

``TrainingState`` joins the policy's compute, the volume and the command log. It decides nothing:
``recovery``, ``steps`` and ``engine`` do, and they change its fields through its methods alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from espalier.api.meta import OptimizerState
from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.commits import Commit
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepResult
from espalier.api.wire.trainer import Assignment, TrainerState
from espalier.core.checkpoints import run_tokens
from espalier.trainer import prometheus
from espalier.trainer.batch.tally import Tally
from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.compute.interface import Compute
from espalier.trainer.engine import checkpoint_files
from espalier.trainer.engine.checkpoint_files import Content, Position, StepState
from espalier.trainer.engine.commands import Answer, Command
from espalier.trainer.engine.detokenizer import Detokenizer
from espalier.trainer.engine.references import References
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError, Stored, Verified
from espalier.trainer.volume.command_log import Assigned, CommandLog, Loaded, Record
from espalier.trainer.volume.inbox import Queued
from espalier.trainer.volume.trace_store import Traces
from espalier.unchanged import end_if_changed


@dataclass(frozen=True)
class Lost:
    """Gradients that wait for a step, or ``weights`` that were loaded, which no file holds now.

    Training goes on once the gradients are dropped, or weights are loaded or assigned.
    """

    problem: Problem
    weights: bool


class TrainingState:
    """One model's training.

    Attributes:
        model: its name.
        base: the digest of the base that it is trained on.
        compute: weights, accumulated gradients and Adam's state.
        store: the checkpoints on the volume.
        log: the commands that were applied.
        traces: the reports of rollouts.
        detokenizer: turns sampled tokens into text.
        references: finds the checkpoints that losses refer to.
        assigned: the run in force; None before the first assignment.
        position: the checkpoint that the weights are of.
        loaded: the checkpoint whose weights were loaded at that position; None if its own are in
            force.
        tallies: one per command whose gradients are accumulated.
        commits: every commit of the model, oldest first.
        problem: the fault in force until a command succeeds; None without one.
        held: why no command is taken until an assignment is: the volume lacks what the trainer
            must stand on. None where it stands.
        lost: what the log has and a restart could not restore; None without such.
        verified: the base as it was last hashed; None before, in a process that did not at start.
        confirmed: whether an assignment has been met since this process began. Until then the log
            may be of an earlier time, and its assignment long over.
    """

    def __init__(
        self,
        *,
        model: str,
        base: str,
        compute: Compute,
        store: CheckpointStore,
        log: CommandLog,
        verified: Verified | None = None,
    ) -> None:
        self.model = model
        self.base = base
        self.compute = compute
        self.store = store
        self.log = log
        self.traces = Traces(store.model_directory(model))
        self.detokenizer = Detokenizer(store, base)
        self.references = References(store, base, compute.adapter)
        self.assigned: Assigned | None = None
        self.position = Position()
        self.loaded: Position | None = None
        self.tallies: list[Tally] = []
        self.commits: list[Commit] = []
        self.problem: Problem | None = None
        self.held: Problem | None = None
        self.lost: Lost | None = None
        self.verified = verified
        self.confirmed = False

    @property
    def trouble(self) -> Problem | None:
        """What the model's owner is told."""
        return self.problem if self.lost is None else self.lost.problem

    def lose(self, problem: Problem, *, weights: bool) -> None:
        """Says that weights or gradients could not be restored."""
        self.lost = Lost(problem, weights)

    def refuse_lost(self) -> None:
        """409 while training would go on without what was lost."""
        if self.lost is not None:
            problem = self.lost.problem
            raise CommandError(409, problem.reason, problem.detail, problem.remedy)

    def trained(self) -> Assigned:
        """The assignment in force, for a command under it; 503 while training is held."""
        if self.held is not None:
            raise CommandError(503, self.held.reason, self.held.detail, self.held.remedy)
        return self.assignment()

    def refuse_unconfirmed(self) -> None:
        """503 until an assignment has been met; what keeps one from it goes first."""
        if not self.confirmed:
            self.trained()
            raise _awaiting_assignment()

    def assignment(self) -> Assigned:
        """The assignment in force; 503 before the first."""
        if self.assigned is None:
            raise _awaiting_assignment()
        return self.assigned

    def run_step(self) -> int:
        """How many steps the assigned run has committed."""
        run = self.assignment().assignment.run
        return sum(commit.run == run for commit in self.commits)

    def report(self) -> TrainerState:
        """Where the trainer stands, as it is sent; 503 before the first assignment."""
        assignment = self.assignment().assignment
        return TrainerState(
            model=self.model,
            run=assignment.run,
            term=assignment.term,
            branch=assignment.branch,
            step=self.position.step,
            run_step=self.run_step(),
            digest=self.position.digest,
            checkpoint=self.position.name,
            # A loop that starts drops what waits, lost gradients too.
            pending=len(self.tallies) or int(self.lost is not None),
            cursor=json.loads(self.log.cursor(assignment.run)),
            problem=self.trouble,
            warnings=list(self.compute.warnings),
        )

    def batch_left(self) -> BatchLeft | None:
        """What is left of the batch that the latest step came from.

        None after a rollback, for another run, or where the step before has left nothing: samples
        of an earlier term are never trained on.
        """
        assignment = self.assignment().assignment
        if self.held is not None or not self.position.digest or not self.commits:
            return None
        last = self.commits[-1]
        here = (self.position.digest, assignment.run, assignment.term)
        if (last.digest, last.run, last.term) != here:
            return None
        return checkpoint_files.batch_left(self.store.open("checkpoint", last.digest))

    def read(self, digest: str) -> Content:
        """A checkpoint that training can continue from; 409 for any other."""
        return checkpoint_files.read(self.store, digest, self.base, self.compute.adapter)

    def read_log(self) -> None:
        """Takes commits and assignment from the log; a commit whose bytes are gone says so."""
        self.commits = [
            c if self.store.has_own(c.digest) else c.model_copy(update={"stored": False})
            for c in self.log.commits()
        ]
        self.assigned = self.log.assigned()

    def assign(self, assignment: Assignment, *, since: int, rebased: bool) -> None:
        """Logs an assignment and puts it in force."""
        self.log.assign(assignment, since=since, rebased=rebased)
        self.assigned = Assigned(assignment, since)

    def stand_on(
        self, position: Position, content: Content | None, optimizer_state: OptimizerState = "Keep"
    ) -> None:
        """Loads a checkpoint's weights and Adam state (None: the base's); drops gradients."""
        if content is None:
            self._reset()
        else:
            self._load(content, keep=optimizer_state == "Keep")
        self.position = position
        self.loaded = self.lost = None
        self.held = None
        self.drop_gradients()

    def hold(self, problem: Problem, position: Position) -> None:
        """Takes no command until the next assignment that can be met, which is told ``position``.

        What was acknowledged stays in the log; a repeated command gets its answer from there.
        """
        self.held = problem
        self.position = position

    def release(self) -> None:
        """Takes commands again: the trainer stands where its log says."""
        self.held = None

    def take_weights(self, content: Content, loaded: Loaded) -> None:
        """Loads the weights of a checkpoint, and its Adam state or a fresh one; drops gradients.

        The position stays: the next commit follows the one before it.
        """
        self._load(content, keep=loaded.optimizer)
        name, step = content.state.name, content.state.step
        self.loaded, self.lost = Position(content.stored.digest, name, step), None
        self.drop_gradients()

    def _load(self, content: Content, *, keep: bool) -> None:
        """Loads a checkpoint's weights, and its Adam state to ``keep`` or a fresh one."""
        self.compute.load(content.stored.path, content.state.optimizer_steps if keep else None)
        end_if_changed(content.stored.noted)

    def _reset(self) -> None:
        """Goes back to the base, whose files full training reads again."""
        if self.compute.adapter.type != "Full":
            self.compute.reset()
            return
        base = self.verified
        if base is None or not base.noted.stands():
            try:
                base = self.verified = self.store.verify("base", self.base)
            except DigestError:
                if base is None:
                    raise
                # The next start says what is damaged.
                end_if_changed(base.noted)
        self.compute.reset()
        end_if_changed(base.noted)

    def begin(self, command: Command | Queued) -> Record:
        """Logs a command that is about to run."""
        if isinstance(command, Queued):
            return self.log.begin_queued(command)
        return self.log.begin(command.key, command.sent.kind, command.sent.body)

    def add_tally(self, tally: Tally) -> None:
        """Counts a command whose gradients were accumulated."""
        self.tallies.append(tally)
        prometheus.TOKENS.inc(tally.tokens)
        prometheus.UNIQUE_TOKENS.inc(tally.unique)

    def drop_batch(self) -> None:
        """Logs that nobody will step on what was accumulated, and forgets it."""
        self.log.drop_pending()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forgets what was accumulated since the last step."""
        self.compute.drop_gradients()
        self.tallies = []
        if self.lost is not None and not self.lost.weights:
            self.lost = None

    def record_commit(self, record: Record, stored: Stored, step: StepState) -> Answer:
        """Logs a checkpoint that is on the volume as the effect of an optimizer step."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        commit = checkpoint_files.commit_of(stored, step, len(self.commits) + 1, now)
        taken = run_tokens.of_run([*self.commits, commit], commit.run)
        commit = commit.model_copy(update={"run_tokens": taken})
        result = OptimStepResult(
            step=step.step,
            checkpoint_id=step.name,
            sampler_path=str(stored.path),
            state_path=str(stored.path),
            model=self.model,
        )
        self.log.commit(record, result.model_dump_json(), commit, json.dumps(step.cursor))
        self.commits = [*self.commits, commit]
        return Answer(200, result.model_dump_json(), stored.digest)

    def install(self, proposal: Proposal, position: Position) -> None:
        """Takes the weights of a committed step; drops the gradients that made it."""
        self.compute.install(proposal)
        self.position = position
        self.loaded = None
        self.drop_gradients()

    def set_problem(self, problem: Problem | None) -> None:
        """Sets the fault in force; None clears it."""
        self.problem = problem


def _awaiting_assignment() -> CommandError:
    return CommandError(
        503,
        "AwaitingAssignment",
        "the operator has not yet assigned a run to this trainer",
        "send the request again in a few seconds",
    )
