"""Messages of Tinker's SDK: read as it writes them, and refused by the field that does not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.tinker import messages
from tests.tinker.messages import Explicit

from espalier.tinker import messages_pb2 as pb
from espalier.tinker import values
from espalier.tinker.datums import Addressed, address, read_batch
from espalier.tinker.results import forward_backward_output
from espalier.tinker.values import InputError

# Written by tinker 0.38.0: the tokens 5 6 7, the targets 6 7 8 and the weights 0 1 1, under
# cross_entropy with the configuration a = 1.
SENT_BY_THE_SDK = bytes.fromhex(
    "0a09733a747261696e3a3010011a640a100a0e0a0c050000000600000007000000121e0a077765696768747312130a0c000000000000803f0000803f180122010312300a0d7461726765745f746f6b656e73121f0a180600000000000000070000000000000008000000000000001802220103220d63726f73735f656e74726f70792a0c0a016111000000000000f03f3a0e0a0161120909000000000000f03f"
)


def test_a_message_of_the_sdk_is_read_as_it_was_meant() -> None:
    assert address(SENT_BY_THE_SDK) == Addressed("s:train:0", 1)
    batch = read_batch(SENT_BY_THE_SDK)
    (datum,) = batch.data
    assert list(datum.tokens) == [5, 6, 7]
    assert list(datum.targets) == [6, 7, 8]
    assert list(datum.values["weights"]) == [0.0, 1.0, 1.0]
    assert (batch.loss_fn, batch.loss_fn_config, batch.forward_only) == (
        "cross_entropy", {"a": 1.0}, False,
    )  # fmt: skip


def test_a_result_has_the_bytes_of_all_datums_and_where_each_begins() -> None:
    logprobs = [values.written(one, values.FLOAT32) for one in ([-0.5, -1.25], [], [-3.0])]
    found = pb.ForwardBackwardOutput.FromString(
        forward_backward_output(logprobs, {"loss:sum": 1.5})
    )
    (record,) = found.loss_fn_outputs
    tensor = record.fields["logprobs"]
    assert list(values.read(tensor.offsets, values.INT64, "")) == [0, 8, 8, 12]
    assert list(values.read(tensor.data, values.FLOAT32, "")) == [-0.5, -1.25, -3.0]
    assert (record.num_datums, dict(found.metrics)) == (3, {"loss:sum": 1.5})
    # The SDK takes the class's name from what follows the last colon.
    assert found.loss_fn_output_type.rsplit(":", 1)[-1] == "ArrayRecord"


def plain() -> pb.Datum:
    return messages.datum(Explicit([1, 2], [2, 3], {"logprobs": [0, -1], "advantages": [0, 1]}))


def _input(name: str, tensor: pb.Tensor | None) -> Callable[[pb.Datum], None]:
    def change(datum: pb.Datum) -> None:
        if tensor is None:
            del datum.loss_fn_inputs[name]
        else:
            datum.loss_fn_inputs[name].CopyFrom(tensor)

    return change


def _chunk(chunk: pb.Chunk) -> Callable[[pb.Datum], None]:
    return lambda datum: datum.model_input.append(chunk)


SOFT = pb.Tensor(
    dense=values.written([1, 2, 3, 4], values.INT64), dtype=pb.DTYPE_INT64, shape=[2, 2]
)
SPARSE = pb.Tensor(sparse_csr=pb.SparseCsr(values=b""), dtype=pb.DTYPE_INT64, shape=[2, 2])
IMAGE = pb.Chunk(image=pb.ImageChunk(data=b"png", format="png"))
TORN = pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=b"\1\0\0"))
WIDE = pb.Tensor(dense=b"\0" * 4, dtype=pb.DTYPE_BFLOAT16, shape=[2])


@pytest.mark.parametrize(
    ("change", "field", "word"),
    [
        (_chunk(IMAGE), "model_input.chunks[1]", "an image"),
        (_chunk(pb.Chunk(dmel=pb.DmelChunk(dmel=b"a"))), "model_input.chunks[1]", "audio"),
        (_chunk(TORN), "model_input.chunks[1].tokens", "3 bytes"),
        (lambda datum: datum.ClearField("model_input"), "model_input", "is empty"),
        (_input("target_tokens", None), "loss_fn_inputs.target_tokens", "is missing"),
        (_input("target_tokens", SOFT), "loss_fn_inputs.target_tokens", "soft targets"),
        (_input("target_tokens", SPARSE), "loss_fn_inputs.target_tokens", "soft targets"),
        (_input("target_tokens", messages.tensor([1.0, 2.0])), "target_tokens", "is not int64"),
        (_input("advantages", None), "loss_fn_inputs.advantages", "is missing"),
        (
            _input("advantages", messages.tensor([1.0])),
            "loss_fn_inputs.advantages",
            "1 values for 2",
        ),
        (_input("advantages", messages.tensor([0, float("nan")])), "advantages[1]", "is nan"),
        (_input("logprobs", messages.tensor([float("-inf"), 0])), "logprobs[0]", "is -inf"),
        (_input("logprobs", WIDE), "loss_fn_inputs.logprobs", "is not float32"),
        (_input("mask", messages.tensor([0, 1])), "loss_fn_inputs.mask", "is not read"),
        (_input("weights", messages.tensor([0, 1])), "loss_fn_inputs.weights", "is not read"),
        (
            _input("clip_low_threshold", messages.tensor([0, 1])),
            "clip_low_threshold",
            "is not read",
        ),
    ],
)
def test_a_datum_that_cannot_be_trained_is_refused_by_its_field(
    change: Callable[[pb.Datum], None], field: str, word: str
) -> None:
    datum = plain()
    change(datum)
    with pytest.raises(InputError) as refused:
        read_batch(messages.forward_backward(1, [plain(), datum], "ppo"))
    assert refused.value.field.startswith("data[1].")
    assert field in refused.value.field
    assert word in refused.value.detail
    assert refused.value.remedy


def test_a_loss_that_is_not_ours_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError) as refused:
        read_batch(messages.forward_backward(1, [plain()], "stable_reinforce"))
    assert refused.value.field == "loss_fn"
    assert "importance_sampling" in refused.value.remedy


def test_a_text_in_a_losss_configuration_is_refused() -> None:
    request = pb.ForwardBackwardRequest.FromString(messages.forward_backward(1, [plain()], "ppo"))
    request.loss_fn_config_v2["mode"].text = "fast"
    with pytest.raises(InputError, match=r"loss_fn_config.mode: is not a number"):
        read_batch(request.SerializeToString())
