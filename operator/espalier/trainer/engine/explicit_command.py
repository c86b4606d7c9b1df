"""A gradient command of Tinker's client, from its message to the result that the client reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from espalier.api.wire.gradients import ForwardBackwardResult
from espalier.tinker import values
from espalier.tinker.datums import ExplicitBatch, read_batch
from espalier.tinker.results import forward_backward_output
from espalier.tinker.values import InputError
from espalier.trainer.batch import explicit
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.losses import LossSpec, loss_spec
from espalier.trainer.batch.step_metrics import answer_metrics
from espalier.trainer.batch.tally import Tally
from espalier.trainer.compute.interface import Added, Batch, Compute
from espalier.trainer.engine.gradient_commands import Aggregated
from espalier.trainer.memory.planner import Cuts
from espalier.trainer.problems import invalid
from espalier.trainer.prometheus import PHASES


@dataclass(frozen=True)
class Told:
    """What a command says: the answer as the log keeps it, and the result in protobuf."""

    answer: str
    result: bytes


@dataclass(frozen=True)
class ExplicitCommand:
    """A forward_backward or forward, checked and admitted."""

    batch: Batch
    spec: LossSpec
    forward_only: bool

    @property
    def aggregation(self) -> Aggregated:
        """Tinker's losses are sums."""
        return "TokenSum", None

    def run(self, compute: Compute) -> Added:
        """Accumulates the gradients; knows no rewards, which are the client's."""
        with PHASES.labels("gradients").time():
            added = compute.add_loss(self.batch, self.spec, None, tell=True)
        return replace(added, tally=replace(added.tally, rewards=()))

    def told(self, added: Added) -> Told:
        """The result of gradients that were accumulated."""
        metrics = answer_metrics(added.tally)
        return _told([datum.numpy().astype("<f4").tobytes() for datum in added.logprobs], metrics)

    def forward(self, compute: Compute) -> Told:
        """The same result without gradients."""
        with PHASES.labels("forward").time():
            scored = compute.score(self.batch)
        loss = explicit.loss(self.spec, self.batch.data, scored)
        counted = sum(sum(datum.trained) for datum in self.batch.data)
        tally = Tally(loss=loss, tokens=counted)
        named = {name: answer_metrics(tally)[name] for name in ("loss:sum", "tokens:sum")}
        return _told([values.written(datum, values.FLOAT32) for datum in scored], named)


def parse(body: bytes, limits: Limits) -> tuple[ExplicitBatch, LossSpec]:
    """A message that can be applied, and its loss; raises 422 naming what cannot."""
    try:
        batch = read_batch(body)
    except InputError as error:
        raise invalid(error.field, error.detail, error.remedy) from error
    return batch, explicit.check(batch, limits)


def explicit_command(compute: Compute, body: bytes, cuts: Cuts = ()) -> ExplicitCommand:
    """A new command, or with its ``cuts`` a logged one; raises 413.

    ``body`` was checked by ``parse`` before it was accepted.
    """
    batch = read_batch(body)
    spec = loss_spec(batch.loss_fn, batch.loss_fn_config)
    admitted = compute.admit(explicit.datums(batch), None if batch.forward_only else spec, cuts)
    return ExplicitCommand(admitted, spec, batch.forward_only)


def _told(logprobs: list[bytes], metrics: dict[str, float]) -> Told:
    answer = ForwardBackwardResult(metrics=metrics, num_datums=len(logprobs)).model_dump_json()
    return Told(answer, forward_backward_output(logprobs, metrics))
