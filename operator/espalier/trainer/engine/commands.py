"""Commands, their answers, and what a gradient command means before it touches the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from espalier.api.wire import (
    BackwardRequest,
    DatumTensors,
    Declared,
    ForwardBackwardRequest,
    ForwardRequest,
    Wire,
)
from espalier.trainer.batch.data import Datum, Limits, datums
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.compute.compute import Added, Batch, Compute
from espalier.trainer.engine.measurements import sampled
from espalier.trainer.memory.planner import Cuts
from espalier.trainer.problems import CommandError, invalid
from espalier.trainer.volume.command_log import CommandLog, Key, Kind, Record

GradientRequest = ForwardBackwardRequest | BackwardRequest
# A custom loss is computed right after its forward; more than this many wait for nobody.
FORWARDS_KEPT = 8


class Empty(Wire):
    """The body of zero-grad."""


@dataclass(frozen=True)
class Sent:
    """What a client asks for.

    ``term`` is the one that it trains under, if it said; ``declared`` what its run binds it to.
    """

    kind: Kind
    request: Wire
    term: int | None
    declared: Declared | None = None

    @cached_property
    def body(self) -> bytes:
        """The request as it is logged and told from others; a batch's takes long, so it is kept."""
        return self.request.model_dump_json().encode()


@dataclass(frozen=True)
class Command:
    """What was sent under its key."""

    key: Key
    sent: Sent


@dataclass(frozen=True)
class Answer:
    """A status, a JSON body, and the digest that an optimizer step committed."""

    status: int
    body: str
    digest: str = ""


@dataclass(frozen=True)
class GradientCommand:
    """A checked and admitted gradient command: ``apply`` accumulates its gradients once."""

    batch: Batch
    add: Callable[[], Added]
    sampled: tuple[tuple[str, float], ...] = ()

    def apply(self) -> Added:
        """Adds the gradients; the tally says as well which checkpoints sampled the rewards."""
        added = self.add()
        return replace(added, tally=replace(added.tally, sampled=self.sampled))


def gradient_command(
    compute: Compute, log: CommandLog, request: GradientRequest, cuts: Cuts = ()
) -> GradientCommand:
    """A new gradient command, or with its ``cuts`` a logged one.

    Raises 422, 404 or 413 before anything is computed.
    """
    if isinstance(request, BackwardRequest):
        return _backward(compute, log, request, cuts)
    return _forward_backward(compute, request, cuts)


def logged_request(log: CommandLog, record: Record) -> GradientRequest:
    """What a pending gradient command asked for."""
    if record.kind == "backward":
        return BackwardRequest.model_validate_json(log.body(record))
    return ForwardBackwardRequest.model_validate_json(log.body(record))


def forward_data(limits: Limits, request: ForwardRequest) -> list[Datum]:
    """The datums of a forward: a custom loss needs the sampler's log-probs too."""
    return datums(request, limits, policies_compared=True)


def forward_id(record: Record) -> str:
    """Names a forward; its body is kept under the record's number."""
    return f"forward-{record.number}"


def datum_tensors(datum: Datum, logprobs: list[float], request: ForwardRequest) -> DatumTensors:
    """One datum of a forward's answer; its reward is scaled, the scale's only use there."""
    return DatumTensors(
        reward=datum.reward * request.reward_scale,
        traj_idx=datum.trajectory,
        group_idx=datum.group,
        logprobs=logprobs,
        sampling_logprobs=list(datum.sampling_logprobs),
        mask=[1.0] * len(datum.output),
    )


def _forward_backward(
    compute: Compute, request: ForwardBackwardRequest, cuts: Cuts
) -> GradientCommand:
    # num_substeps asks for smaller pieces; rows are sized for the device anyway, and sums of
    # gradients do not depend on the split.
    spec = loss_spec(request.loss_fn, request.loss_fn_config)
    data = datums(
        request,
        compute.limits,
        policies_compared=spec.compares_policies,
        weighted=spec.takes_weights,
    )
    batch = compute.admit(data, spec, cuts)
    return GradientCommand(
        batch,
        lambda: compute.add_loss(batch, spec, request.group_size),
        sampled(request.inputs),
    )


def _backward(
    compute: Compute, log: CommandLog, request: BackwardRequest, cuts: Cuts
) -> GradientCommand:
    forward = held_forward(log, request.forward_id)
    data = forward_data(compute.limits, forward)
    _check_weights(request.weights, data)
    batch = compute.admit(data, cuts=cuts)
    return GradientCommand(
        batch,
        lambda: compute.add_weights(
            batch,
            request.weights,
            given=request.metrics,
            group_size=forward.group_size,
            forward=request.forward_id,
        ),
        sampled(forward.inputs),
    )


def held_forward(log: CommandLog, wanted: str) -> ForwardRequest:
    """The forward that a backward builds on; 404 when it is not held any more."""
    for record in log.forwards(FORWARDS_KEPT):
        if forward_id(record) == wanted:
            return ForwardRequest.model_validate_json(log.body(record))
    raise CommandError(
        404,
        "ForwardNotFound",
        f"forward_id {wanted!r} is unknown, older than the latest {FORWARDS_KEPT} forwards, or "
        "from before the last optimizer step, zero-grad or term",
        "call forward again and compute the weights from its log-probs",
    )


def _check_weights(weights: list[list[float]], data: list[Datum]) -> None:
    if len(weights) != len(data):
        raise invalid(
            "weights",
            f"has {len(weights)} rows for {len(data)} datums",
            "send one row per datum that forward returned",
        )
    for index, (row, datum) in enumerate(zip(weights, data, strict=True)):
        if len(row) != len(datum.output):
            raise invalid(
                f"weights[{index}]",
                f"has {len(row)} values for {len(datum.output)} log-probs",
                "send one weight per log-prob that forward returned",
            )
