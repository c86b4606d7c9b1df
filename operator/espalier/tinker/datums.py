"""A batch that Tinker's client trains on: for every input token what is to be predicted next.

Position i of the input predicts ``target_tokens[i]``, which the client has shifted. All of a
datum's values have one number for each position: N in all.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from espalier.tinker import messages_pb2 as pb
from espalier.tinker import values
from espalier.tinker.values import FLOAT32, INT32, INT64, InputError

# What a loss reads besides the targets, and what its client must send.
POLICY_INPUTS = ("logprobs", "advantages")
INPUTS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("weights",),
    "importance_sampling": POLICY_INPUTS,
    "ppo": POLICY_INPUTS,
    "cispo": POLICY_INPUTS,
    "dro": POLICY_INPUTS,
    "gspo": (*POLICY_INPUTS, "sequence_ratio_mask"),
}
TARGETS = "target_tokens"
_REMEDIES = {
    "mask": "leave it out, as the cookbook does: fold it into weights or advantages",
    "weights": "leave it out, and fold it into advantages",
    "clip_low_threshold": "send it in loss_fn_config, for the whole batch",
    "clip_high_threshold": "send it in loss_fn_config, for the whole batch",
}


@dataclass(frozen=True)
class ExplicitDatum:
    """N input tokens with their targets; ``values`` are by the name of a loss's input, N each."""

    tokens: array[int]
    targets: array[int]
    values: dict[str, array[float]]


@dataclass(frozen=True)
class ExplicitBatch:
    """One forward_backward, or with ``forward_only`` one forward, of a model's commands."""

    model_id: str
    seq: int
    data: tuple[ExplicitDatum, ...]
    loss_fn: str
    loss_fn_config: dict[str, float]
    forward_only: bool

    @property
    def tokens(self) -> int:
        """Positions in all."""
        return sum(len(datum.tokens) for datum in self.data)


@dataclass(frozen=True)
class Addressed:
    """Whose command a body is, and its number."""

    model_id: str
    seq: int


def message(body: bytes) -> pb.ForwardBackwardRequest:
    """The message of a forward_backward; raises InputError for other bytes."""
    found = pb.ForwardBackwardRequest()
    try:
        found.ParseFromString(body)
    except DecodeError as error:
        raise InputError(
            "body",
            f"is no ForwardBackwardRequest in protobuf ({error})",
            "use tinker 0.25 or later, or set proto_write_fwdbwd",
        ) from error
    return found


def address(body: bytes) -> Addressed:
    """Whose forward_backward a body is; reads nothing else of it."""
    found = message(body)
    return Addressed(found.model_id, found.seq_id)


def read_batch(body: bytes) -> ExplicitBatch:
    """The batch of a forward_backward; raises InputError naming what cannot be applied."""
    request = message(body)
    if request.loss_fn not in INPUTS:
        raise InputError(
            "loss_fn",
            f"{request.loss_fn[:64]!r} is not a loss of this trainer",
            f"use one of {', '.join(INPUTS)}, or forward_backward_custom; for "
            "stable_reinforce use importance_sampling",
        )
    if not request.data:
        raise InputError("data", "is empty", "send at least one datum")
    return ExplicitBatch(
        request.model_id,
        request.seq_id,
        tuple(
            _datum(datum, request.loss_fn, f"data[{index}]")
            for index, datum in enumerate(request.data)
        ),
        request.loss_fn,
        _config(request),
        request.forward_only,
    )


def _config(request: pb.ForwardBackwardRequest) -> dict[str, float]:
    for name, value in request.loss_fn_config_v2.items():
        if value.WhichOneof("value") != "number":
            raise InputError(
                f"loss_fn_config.{name}", "is not a number", "no loss of this trainer takes a text"
            )
    if request.loss_fn_config_v2:
        return {name: value.number for name, value in request.loss_fn_config_v2.items()}
    return dict(request.loss_fn_config)


def _datum(datum: pb.Datum, loss: str, field: str) -> ExplicitDatum:
    tokens = _tokens(datum, field)
    inputs = datum.loss_fn_inputs
    if TARGETS not in inputs:
        raise InputError(
            f"{field}.loss_fn_inputs.{TARGETS}", "is missing", "send the token of each position"
        )
    wanted = INPUTS[loss]
    for name in inputs:
        if name not in (TARGETS, *wanted):
            remedy = _REMEDIES.get(name, "leave it out")
            raise InputError(
                f"{field}.loss_fn_inputs.{name[:64]}", f"is not read by {loss}", remedy
            )
    targets = _values(inputs[TARGETS], (INT64, INT32), f"{field}.loss_fn_inputs.{TARGETS}", tokens)
    read = {}
    for name in wanted:
        at = f"{field}.loss_fn_inputs.{name}"
        if name not in inputs:
            raise InputError(at, f"is missing, and {loss} reads it", "send a value per position")
        read[name] = _values(inputs[name], (FLOAT32,), at, tokens)
        values.finite(read[name], at)
    return ExplicitDatum(tokens, targets, read)


def _tokens(datum: pb.Datum, field: str) -> array[int]:
    tokens: array[int] = array(INT32)
    for index, chunk in enumerate(datum.model_input):
        kind, at = chunk.WhichOneof("chunk"), f"{field}.model_input.chunks[{index}]"
        if kind != "encoded_text":
            raise InputError(
                at,
                f"is {'an image' if kind == 'image' else 'audio'}: only text is trained",
                "send encoded_text chunks alone",
            )
        tokens += values.read(chunk.encoded_text.tokens, INT32, f"{at}.tokens")
    if not tokens:
        raise InputError(f"{field}.model_input", "is empty", "leave out datums without tokens")
    return tokens


def _values(
    tensor: pb.Tensor, wanted: tuple[str, ...], field: str, tokens: array[int]
) -> array[Any]:
    found = values.vector(tensor, wanted, field)
    if len(found) != len(tokens):
        raise InputError(
            field,
            f"has {len(found)} values for {len(tokens)} input tokens",
            "send one value per position of model_input, already shifted",
        )
    return found
