"""Forwards: the log-probs that a client computes its own loss from, and which of them are kept."""

from __future__ import annotations

from espalier.api.wire.gradients import DatumTensors, ForwardRequest
from espalier.trainer.batch.data import Datum, datums
from espalier.trainer.batch.limits import Limits
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.command_log import CommandLog, Record

# A client computes its loss right after the forward, so few forwards need to be kept.
FORWARDS_KEPT = 8


def forward_data(limits: Limits, request: ForwardRequest) -> list[Datum]:
    """The datums of a forward: a custom loss needs the sampler's log-probs too."""
    return datums(request, limits, policies_compared=True)


def forward_id(record: Record) -> str:
    """Names a forward; its body is kept under the record's number."""
    return f"forward-{record.number}"


def datum_tensors(
    datum: Datum,
    logprobs: list[float],
    request: ForwardRequest,
    reference_logprobs: list[float] | None,
) -> DatumTensors:
    """One datum of a forward's answer, with its reward scaled."""
    return DatumTensors(
        reward=datum.reward * request.reward_scale,
        traj_idx=datum.trajectory,
        group_idx=datum.group,
        logprobs=logprobs,
        sampling_logprobs=list(datum.sampling_logprobs),
        mask=[0.0 if datum.masked else 1.0] * len(datum.output),
        reference_logprobs=reference_logprobs,
    )


def held_forward(log: CommandLog, wanted: str) -> ForwardRequest:
    """The forward that a backward refers to; 404 when it is no longer kept."""
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
