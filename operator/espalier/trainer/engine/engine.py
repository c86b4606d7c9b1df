"""The engine: applies commands one at a time, each once, and says where the trainer stands.

All of it runs on one thread. A command is logged, applied and finished in the log before it is
answered. Whatever fails in between leaves the state as it was, gradients restored from the log.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable

from espalier.api.meta import OptimizerState
from espalier.api.wire import (
    Assignment,
    Commit,
    ForwardBackwardResult,
    ForwardRequest,
    ForwardResult,
    OptimStepRequest,
    Problem,
    TrainerState,
)
from espalier.core.model.reported import VOLUME_REASONS
from espalier.trainer.batch.step_metrics import Tally
from espalier.trainer.compute.compute import Compute
from espalier.trainer.engine import checkpoint_files, declared, recovery, steps
from espalier.trainer.engine.checkpoint_files import Position
from espalier.trainer.engine.commands import (
    Answer,
    Command,
    GradientRequest,
    datum_tensors,
    forward_data,
    forward_id,
    gradient_command,
)
from espalier.trainer.engine.kept_rollouts import Reader
from espalier.trainer.memory.planner import cuts_json
from espalier.trainer.problems import CommandError
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import Assigned, CommandLog, Key, Record
from espalier.trainer.volume.trace_store import Traces

logger = logging.getLogger(__name__)


class Engine:
    """One model's training state. ``publish`` is told after every change."""

    def __init__(
        self,
        *,
        model: str,
        base: str,
        compute: Compute,
        store: CheckpointStore,
        log: CommandLog,
        publish: Callable[[Engine], None],
    ) -> None:
        self.model = model
        self.base = base
        self.compute = compute
        self.store = store
        self.log = log
        self.traces = Traces(store.model_directory(model))
        self.reader = Reader(store, base)
        self.assigned: Assigned | None = None
        self.position = Position()
        self.tallies: list[Tally] = []
        self.commits: list[Commit] = []
        self.problem: Problem | None = None
        self._publish = publish
        # The log's lock is held, so no other trainer of this model is staging anything.
        store.sweep()
        recovery.restore(self)
        self._publish(self)

    def assignment(self) -> Assigned:
        """The assignment in force; 503 before the first."""
        if self.assigned is None:
            raise CommandError(
                503,
                "AwaitingAssignment",
                "the operator has not yet assigned a run to this trainer",
                "send the request again in a few seconds",
            )
        return self.assigned

    def state(self) -> TrainerState:
        """Where the trainer stands; 503 before the first assignment."""
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
            pending=len(self.tallies),
            cursor=json.loads(self.log.cursor(assignment.run)),
            problem=self.problem,
            warnings=list(self.compute.warnings),
        )

    def assign(self, wanted: Assignment) -> TrainerState:
        """Re-bases under a higher term, keeps the position under the same, refuses a lower."""
        current = self.assigned
        if current is not None and wanted.term < current.assignment.term:
            raise _stale(wanted.term, current.assignment.term)
        if current is not None and wanted.term == current.assignment.term:
            # The base stays the recorded one: it is where a restart begins to look.
            kept = current.assignment.model_copy(
                update={"run": wanted.run, "branch": wanted.branch}
            )
            self.log.assign(kept, since=current.since, rebased=False)
            self.assigned = Assigned(kept, current.since)
        else:
            content = self.read(wanted.base) if wanted.base else None
            if content is not None:
                self.compute.check(tensor_files.weights_of(content.stored.path).shapes)
            since = len(self.commits)
            self.log.assign(wanted, since=since, rebased=True)
            self.assigned = Assigned(wanted, since)
            position = Position(wanted.base, wanted.base_name, wanted.base_step)
            self.stand_on(position, content, wanted.optimizer_state)
        self._publish(self)
        return self.state()

    def execute(self, command: Command) -> Answer:
        """Applies a command once; a key that was answered before gets its first answer.

        Commands apply in the order they arrive. Within a session the numbers must rise (gaps are
        allowed: a refused command uses its number up); one that was overtaken is refused.
        """
        term = self.assignment().assignment.term
        sent = command.sent
        known = self.log.find(command.key)
        if known is not None and known.status is not None:
            if not known.is_for(sent.kind, sent.body):
                raise CommandError(
                    422,
                    "KeyReused",
                    f"key {known.key.session}/{known.key.seq} was used for another {known.kind}",
                    "give every command a key of its own",
                )
            return Answer(known.status, known.answer, known.checkpoint)
        if sent.term is not None and sent.term != term:
            raise _stale(sent.term, term)
        if sent.declared is not None:
            # Not before: what was applied before the spec was edited is answered again.
            declared.check(sent.declared, sent.request)
        self._check_order(command.key)
        try:
            answer = self._apply(command)
            if self.problem is not None and self.problem.reason in VOLUME_REASONS:
                self.problem = None
            return answer
        except CommandError as error:
            if error.problem.reason in VOLUME_REASONS:
                self.problem = error.problem
            raise
        finally:
            self._publish(self)

    def stand_on(
        self,
        position: Position,
        content: checkpoint_files.Content | None,
        optimizer_state: OptimizerState = "Keep",
    ) -> None:
        """Takes a checkpoint's weights and Adam state (none: the base's); no gradients."""
        if content is None:
            self.compute.reset()
        else:
            after = content.state.optimizer_steps if optimizer_state == "Keep" else None
            self.compute.load(content.stored.path, after)
        self.position = position
        self.drop_gradients()

    def read(self, digest: str) -> checkpoint_files.Content:
        """A checkpoint that this trainer can go on from; 409 for any other."""
        return checkpoint_files.read(self.store, digest, self.base, self.compute.adapter)

    def drop_gradients(self) -> None:
        """Forgets what was accumulated since the last step."""
        self.compute.drop_gradients()
        self.tallies = []

    def run_step(self) -> int:
        """How many steps the assigned run has committed."""
        run = self.assignment().assignment.run
        return sum(commit.run == run for commit in self.commits)

    def undo(self, record: Record) -> None:
        """Back to what the log says after a command failed half-way."""
        try:
            self.log.abandon(record)
            recovery.restore(self)
        except Exception:
            logger.exception("the state cannot be restored in place; starting over from the log")
            os._exit(1)

    def _check_order(self, key: Key) -> None:
        """Numbers of a session rise, with gaps: what was overtaken is refused, never reordered."""
        latest = self.log.latest(key.session)
        if latest is not None and key.seq < latest:
            raise CommandError(
                409,
                "OutOfOrder",
                f"session {key.session} already applied command {latest}, so command {key.seq} "
                "would be applied after what was meant to follow it; it was not applied",
                "send it under a number above all others, or call zero_grad and start the step "
                "again; wait for each answer before the next command, or keep one connection",
            )

    def _apply(self, command: Command) -> Answer:
        request = command.sent.request
        if isinstance(request, GradientRequest):
            return self._gradients(command, request)
        if isinstance(request, OptimStepRequest):
            return steps.optim_step(self, command, request)
        if isinstance(request, ForwardRequest):
            return self._forward(command, request)
        return self._zero_grad(command)

    def begin(self, command: Command) -> Record:
        """Logs a command that is about to run."""
        return self.log.begin(command.key, command.sent.kind, command.sent.body)

    def _gradients(self, command: Command, request: GradientRequest) -> Answer:
        work = gradient_command(self.compute, self.log, request)
        record = self.begin(command)
        try:
            added = work.apply()
            answer = ForwardBackwardResult(
                metrics=added.tally.answer_metrics(), num_datums=len(work.batch.data)
            ).model_dump_json()
            self.log.accumulate(record, answer, cuts_json(added.cuts))
        except Exception:
            self.undo(record)
            raise
        self.tallies.append(added.tally)
        return Answer(200, answer)

    def _forward(self, command: Command, request: ForwardRequest) -> Answer:
        data = forward_data(self.compute.limits, request)
        batch = self.compute.admit(data)
        record = self.begin(command)
        try:
            scored = self.compute.score(batch, keep=forward_id(record))
            result = ForwardResult(
                forward_id=forward_id(record),
                data=[datum_tensors(d, lp, request) for d, lp in zip(data, scored, strict=True)],
            )
            self.log.finish(record, 200, result.model_dump_json())
        except Exception:
            self.log.abandon(record)
            raise
        return Answer(200, result.model_dump_json())

    def _zero_grad(self, command: Command) -> Answer:
        record = self.begin(command)
        answer = self.state().model_copy(update={"pending": 0}).model_dump_json()
        try:
            self.log.settle(record, 200, answer)
        except Exception:
            self.undo(record)
            raise
        self.drop_gradients()
        return Answer(200, answer)


def _stale(given: int, current: int) -> CommandError:
    return CommandError(
        409,
        "StaleTerm",
        f"the command is of term {given}, the trainer is at term {current}",
        "read train/state and continue from the checkpoint named there",
    )
