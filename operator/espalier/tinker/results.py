"""What a command of Tinker's client ends in, as its SDK reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel, ConfigDict

from espalier.tinker import messages_pb2 as pb
from espalier.tinker import values

PROTOBUF = "application/x-protobuf"
# Who has to act on a failed command.
Category = Literal["user", "server", "unknown"]
# The SDK takes what follows the colon for the type of the outputs; one of these is enough for all.
OUTPUT_TYPE = "espalier:ArrayRecord"


class Failed(BaseModel):
    """The answer for a command that failed: status 200, and this body."""

    model_config = ConfigDict(frozen=True)

    error: str
    category: Category


def forward_backward_output(logprobs: Sequence[bytes], metrics: Mapping[str, float]) -> bytes:
    """The protobuf of the log-probs of every datum's targets (float32), and of the sums over all.

    The name of a metric is ``name:reduction``, by which the client joins those of several chunks.
    """
    sizes = [len(datum) for datum in logprobs]
    tensor = pb.BatchedTensor(
        data=b"".join(logprobs),
        offsets=values.written(accumulate(sizes, initial=0), values.INT64),
        dtype=pb.DTYPE_FLOAT32,
    )
    record = pb.ArrayRecord(
        type_tag=OUTPUT_TYPE, fields={"logprobs": tensor}, num_datums=len(logprobs)
    )
    output = pb.ForwardBackwardOutput(
        loss_fn_output_type=OUTPUT_TYPE, loss_fn_outputs=[record], metrics=metrics
    )
    return bytes(output.SerializeToString(deterministic=True))
