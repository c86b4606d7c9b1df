"""Messages as Tinker's SDK sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from espalier.tinker import messages_pb2 as pb
from espalier.tinker import values

MODEL_ID = "0a1b:train:0"


@dataclass(frozen=True)
class Explicit:
    """Tokens, their targets, and a loss's inputs by name."""

    tokens: Sequence[int]
    targets: Sequence[int]
    inputs: Mapping[str, Sequence[float]] = field(default_factory=dict)


def tensor(numbers: Sequence[Any], code: str = values.FLOAT32) -> pb.Tensor:
    dtype = {values.FLOAT32: pb.DTYPE_FLOAT32, values.INT64: pb.DTYPE_INT64}[code]
    return pb.Tensor(dense=values.written(numbers, code), dtype=dtype, shape=[len(numbers)])


def datum(one: Explicit) -> pb.Datum:
    text = pb.EncodedTextChunk(tokens=values.written(one.tokens, values.INT32))
    made = pb.Datum(model_input=[pb.Chunk(encoded_text=text)])
    made.loss_fn_inputs["target_tokens"].CopyFrom(tensor(one.targets, values.INT64))
    for name, numbers in one.inputs.items():
        made.loss_fn_inputs[name].CopyFrom(tensor(numbers))
    return made


def forward_backward(
    seq: int,
    data: Sequence[pb.Datum],
    loss: str = "importance_sampling",
    *,
    forward_only: bool = False,
    model_id: str = MODEL_ID,
    **config: float,
) -> bytes:
    request = pb.ForwardBackwardRequest(
        model_id=model_id, seq_id=seq, data=data, loss_fn=loss, forward_only=forward_only
    )
    for name, value in config.items():
        request.loss_fn_config[name] = value
        request.loss_fn_config_v2[name].number = value
    return bytes(request.SerializeToString(deterministic=True))
