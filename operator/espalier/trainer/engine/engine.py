"""The engine applies commands one at a time and each exactly once.

It runs on one thread. A command is logged, applied and finished in the log before it is answered. A
failure in between leaves the state as it was: gradients are restored from the log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from espalier.api.wire.commits import Commit
from espalier.api.wire.gradients import ForwardBackwardResult, ForwardRequest, ForwardResult
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import Assignment, TrainerState
from espalier.core.model.reported import VOLUME_BEHIND, VOLUME_REASONS
from espalier.core.names import BASE, parse_checkpoint_name
from espalier.trainer.batch.step_metrics import answer_metrics
from espalier.trainer.engine import declared, recovery, steps
from espalier.trainer.engine.checkpoint_files import Position
from espalier.trainer.engine.commands import Answer, Command
from espalier.trainer.engine.forwards import datum_tensors, forward_data, forward_id
from espalier.trainer.engine.gradient_commands import (
    Aggregated,
    GradientRequest,
    gradient_command,
    hold_reference,
)
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.memory.planner import cuts_json
from espalier.trainer.problems import CommandError
from espalier.trainer.prometheus import PHASES
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.command_log import Assigned, Key
from espalier.trainer.volume.log_records import TINKER_GRADIENTS

Admit = Callable[[], AbstractContextManager[None]]


class Engine:
    """Applies commands to ``state``; ``publish`` is called with it after every change."""

    def __init__(
        self, state: TrainingState, publish: Callable[[TrainingState], None] = lambda _: None
    ) -> None:
        self.state = state
        self._publish = publish
        # The log's lock is held, so no other trainer of this model is staging anything.
        state.store.sweep()
        state.log.inbox.count_crashes()
        recovery.restore(state)
        publish(state)

    def tell(self) -> None:
        """Publishes the state after a change that another made on the engine's thread."""
        self._publish(self.state)

    def assign(self, wanted: Assignment) -> TrainerState:
        """Re-bases under a higher term, keeps the position under the same, refuses a lower.

        Under the same term ``wanted.base`` is where the branch stood when it was last heard of. A
        log that lacks it is of an earlier time: going on would take its steps a second time.
        """
        state, current = self.state, self.state.assigned
        if current is not None and wanted.term < current.assignment.term:
            raise stale_term(wanted.term, current.assignment.term)
        if current is not None and wanted.term == current.assignment.term:
            self._check_standing(wanted, current)
            # Keep the recorded base: a restart restores from it.
            kept = current.assignment.model_copy(
                update={"run": wanted.run, "branch": wanted.branch}
            )
            state.assign(kept, since=current.since, rebased=False)
        else:
            content = state.read(wanted.base) if wanted.base else None
            if content is not None:
                state.compute.check(tensor_files.weights_of(content.stored.path).shapes)
            state.assign(wanted, since=len(state.commits), rebased=True)
            position = Position(wanted.base, wanted.base_name, wanted.base_step)
            state.stand_on(position, content, wanted.optimizer_state)
        state.confirmed = True
        self._publish(state)
        return state.report()

    def _check_standing(self, wanted: Assignment, current: Assigned) -> None:
        """Raises 409 where the trainer cannot go on under its term, and holds training."""
        state = self.state
        if state.held is None or state.held.reason == VOLUME_BEHIND:
            own = parse_checkpoint_name(state.model, wanted.base_name)
            known = {current.assignment.base, *(commit.digest for commit in state.commits)}
            if own is not None and own[1] > 0 and wanted.base not in known:
                state.hold(volume_behind(wanted, state.commits), state.position)
            else:
                state.release()
        if (held := state.held) is not None:
            raise CommandError(409, held.reason, held.detail, held.remedy)

    def assigned_run(self) -> str:
        """The assigned run; empty before the first assignment."""
        assigned = self.state.assigned
        return assigned.assignment.run if assigned is not None else ""

    def execute(self, command: Command, admit: Admit = nullcontext) -> Answer:
        """Applies a command once; a key that was answered before gets its first answer.

        Commands apply in the order they arrive. Within a session the numbers must rise (gaps are
        allowed: a refused command uses its number up); one that was overtaken is refused. A new
        command that trains is applied within ``admit``, which raises CommandError where its client
        may not train now.
        """
        self.state.assignment()
        sent = command.sent
        known = self.state.log.find(command.key)
        if known is not None and known.status is not None:
            if not known.is_for(sent.kind, sent.body):
                raise CommandError(
                    422,
                    "KeyReused",
                    f"key {known.key.session}/{known.key.seq} was used for another {known.kind}",
                    "give every command a key of its own",
                )
            return Answer(known.status, known.answer, known.checkpoint)
        term = self.state.trained().assignment.term
        if sent.term is not None and sent.term != term:
            raise stale_term(sent.term, term)
        if sent.declared is not None:
            # After the lookup: a command applied before an edit of the spec is still answered
            # again.
            declared.check(sent.declared, sent.request, step=self.state.run_step() + 1)
        self._check_order(command.key)
        with nullcontext() if sent.kind == "forward" else admit():
            return self._applied(command)

    def _applied(self, command: Command) -> Answer:
        """Applies a command, and tells what it changed."""
        try:
            answer = self._apply(command)
            problem = self.state.problem
            if problem is not None and problem.reason in VOLUME_REASONS:
                self.state.set_problem(None)
            return answer
        except CommandError as error:
            if error.problem.reason in VOLUME_REASONS:
                self.state.set_problem(error.problem)
            raise
        finally:
            self._publish(self.state)

    def _check_order(self, key: Key) -> None:
        """Refuses a number below the session's latest: commands are never reordered."""
        latest = self.state.log.latest(key.session)
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
        if isinstance(request, OptimStepRequest):
            self._drop_left()
            return steps.optim_step(self.state, command, request)
        if isinstance(request, GradientRequest):
            self._drop_left()
            self.state.refuse_lost()
            return self._gradients(command, request)
        if isinstance(request, ForwardRequest):
            self.state.refuse_lost()
            return self._forward(command, request)
        return self._zero_grad(command)

    def _drop_left(self) -> None:
        """Drops a batch that a client of Tinker's left: gradients of two clients never add up."""
        state = self.state
        pending = state.log.pending() if state.tallies or state.lost else []
        if any(record.kind == TINKER_GRADIENTS for record in pending):
            state.drop_batch()

    def _gradients(self, command: Command, request: GradientRequest) -> Answer:
        gradients = gradient_command(
            self.state.compute, self.state.log, request, find=self.state.references.find
        )
        check_aggregation(self.state, gradients.aggregation)
        record = self.state.begin(command)
        try:
            added = gradients.run(self.state.compute)
            answer = ForwardBackwardResult(
                metrics=answer_metrics(added.tally), num_datums=len(gradients.batch.data)
            ).model_dump_json()
            referred = b"" if added.referred is None else json.dumps(added.referred).encode()
            self.state.log.accumulate(record, answer, cuts_json(added.cuts), referred=referred)
        except Exception:
            recovery.undo(self.state, record)
            raise
        self.state.add_tally(added.tally)
        return Answer(200, answer)

    def _forward(self, command: Command, request: ForwardRequest) -> Answer:
        compute, reference = self.state.compute, request.reference
        data = forward_data(compute.limits, request)
        if reference is not None:
            checkpoint = None if reference == BASE else reference
            hold_reference(compute, "reference", checkpoint, self.state.references.find)
        batch = compute.admit(data)
        record = self.state.begin(command)
        try:
            referred: Sequence[list[float] | None] = [None] * len(data)
            if reference is not None:
                # Before the forward, whose graph is kept until anything else is computed.
                with PHASES.labels("reference").time():
                    referred = compute.refer(batch).logprobs
            with PHASES.labels("forward").time():
                scored = compute.score(batch, keep=forward_id(record))
            result = ForwardResult(
                forward_id=forward_id(record),
                data=[
                    datum_tensors(datum, logprobs, request, reference_logprobs)
                    for datum, logprobs, reference_logprobs in zip(
                        data, scored, referred, strict=True
                    )
                ],
            )
            self.state.log.finish(record, 200, result.model_dump_json())
        except Exception:
            self.state.log.abandon(record)
            raise
        return Answer(200, result.model_dump_json())

    def _zero_grad(self, command: Command) -> Answer:
        record = self.state.begin(command)
        answer = self.state.report().model_copy(update={"pending": 0}).model_dump_json()
        try:
            self.state.log.settle(record, 200, answer)
        except Exception:
            recovery.undo(self.state, record)
            raise
        self.state.drop_gradients()
        return Answer(200, answer)


def volume_behind(wanted: Assignment, commits: Sequence[Commit]) -> Problem:
    """That the model's Checkpoints are newer than its volume."""
    newest = next((commit.name for commit in reversed(commits) if commit.stored), "the base")
    return Problem(
        reason=VOLUME_BEHIND,
        detail=f"{wanted.base_name} ({wanted.base}) is a Checkpoint of branch {wanted.branch}, and "
        "the trainer's log on the volume does not know it: the volume is of an earlier time. The "
        f"newest that it has is {newest}",
        remedy=f"restore a later copy of the volume, or pin the head to {newest} with onPin: "
        "Branch, and training goes on from there",
    )


def check_aggregation(state: TrainingState, now: Aggregated) -> None:
    """Refuses a call that adds up otherwise than the step's earlier: no divisor fits both."""
    for tally in state.tallies[:1]:
        before = (tally.aggregation, tally.aggregation_constant)
        if now != before:
            raise CommandError(
                409,
                "AggregationDiffers",
                f"aggregation is {_aggregated(now)}, and the step's earlier calls have "
                f"{_aggregated(before)}; nothing was accumulated",
                "send all calls of a step with the same aggregation; a custom loss is a "
                "TokenSum. zero-grad drops what is accumulated",
            )


def stale_term(given: int, current: int) -> CommandError:
    """The refusal of a command that was sent under another term."""
    return CommandError(
        409,
        "StaleTerm",
        f"the command is of term {given}, the trainer is at term {current}",
        "read train/state and continue from the checkpoint named there",
    )


def _aggregated(aggregation: Aggregated) -> str:
    name, constant = aggregation
    return name if constant is None else f"{name} {constant}"
