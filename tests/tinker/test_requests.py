"""Requests of Tinker's clients, as completions and adapters."""

from __future__ import annotations

import json
import tracemalloc
from array import array
from typing import Any

import pytest
import zstandard
from pydantic import ValidationError

from espalier.api.model.adapter import Adapter
from espalier.gateway.access.request_limits import MAX_INFLATED_BYTES
from espalier.gateway.problems import RefusalError
from espalier.gateway.tinker import lora, refusals, sampling
from espalier.gateway.tinker.bodies import LoraConfig, Sample
from espalier.gateway.tinker.inflate import inflate
from espalier.tinker.messages_pb2 import SampleResponse
from espalier.untrusted import UnreadableError


def asked(**more: Any) -> Sample:
    body: dict[str, Any] = {
        "sampling_session_id": "s",
        "seq_id": 0,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": more.pop("params", {}),
    }
    return Sample.model_validate(body | more)


@pytest.mark.parametrize(
    ("stop", "sent"),
    [
        (None, {}),
        ([], {"ignore_eos": True}),
        ("\n", {"stop": ["\n"]}),
        (["a", "b"], {"stop": ["a", "b"]}),
        ([7, 8], {"stop_token_ids": [7, 8]}),
    ],
)
def test_each_form_of_stop_is_what_the_client_means_by_it(stop: Any, sent: dict[str, Any]) -> None:
    body = sampling.completion(asked(params={"stop": stop}), context=64)
    assert {k: v for k, v in body.items() if k in ("stop", "stop_token_ids", "ignore_eos")} == sent


def test_without_a_limit_a_sample_goes_to_the_end_of_the_context() -> None:
    assert sampling.completion(asked(), context=64)["max_tokens"] == 64
    assert sampling.completion(asked(params={"max_tokens": 5}), context=64)["max_tokens"] == 5


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"prompt": {"chunks": []}}, "prompt has no tokens"),
        ({"prompt": {"chunks": [{"type": "image"}]}}, "chunks[0] is of type image"),
        ({"topk_prompt_logprobs": 1}, "needs prompt_logprobs"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 3}, "prompt_logprobs_last_n is 3"),
    ],
)
def test_what_cannot_be_honoured_is_named(more: dict[str, Any], says: str) -> None:
    assert says in sampling.problem(asked(**more))


@pytest.mark.parametrize("field", ["target_prompt_logprobs", "prompt_alt_tokens_k", "new_field"])
def test_a_field_that_would_have_no_effect_is_refused_unless_it_asks_for_nothing(
    field: str,
) -> None:
    assert asked(**{field: None}).seq_id == asked(**{field: 0}).seq_id == 0
    with pytest.raises(ValidationError, match=field):
        asked(**{field: 2})


def answer(**more: Any) -> dict[str, Any]:
    scored = {
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"token_id:5": -1.0, "token_id:9": -0.5}, {"token_id:6": -2.0}],
    }
    choice = {"index": 0, "token_ids": [5, 6], "logprobs": scored, "finish_reason": "stop"}
    prompt = [None, {"2": {"logprob": -3.0}}, {"3": {"logprob": -4.0}, "8": {"logprob": -0.1}}]
    return {"choices": [choice | {"prompt_logprobs": prompt} | more]}


def test_the_most_likely_tokens_come_in_rows_of_equal_length() -> None:
    request = asked(prompt_logprobs=True, topk_prompt_logprobs=1, topk_sample_logprobs=2)
    found = SampleResponse.FromString(sampling.response(request, answer()))
    drawn = found.sequences[0].topk_sampled_logprobs
    assert array("i", drawn.token_ids).tolist() == [9, 5, 6, 0]
    assert array("f", drawn.logprobs).tolist() == [-0.5, -1.0, -2.0, -99999.0]
    given = found.topk_prompt_logprobs
    assert (given.k, given.length) == (1, 3)
    assert array("i", given.token_ids).tolist() == [0, 2, 8]


def test_only_the_last_of_the_prompt_is_scored_where_the_client_asks_for_that() -> None:
    request = asked(prompt_logprobs=True, prompt_logprobs_last_n=1)
    found = SampleResponse.FromString(sampling.response(request, answer()))
    scored = array("f", found.prompt_logprobs).tolist()
    assert [value == value for value in scored] == [False, False, True]  # noqa: PLR0124 NaN


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_ids": [5]},
        {"finish_reason": "abort"},
        {"logprobs": None},
        {"token_ids": [5, 2**40]},
        {"prompt_logprobs": [None]},
    ],
)
def test_a_rollout_that_answers_something_else_is_found_out(wrong: dict[str, Any]) -> None:
    with pytest.raises(UnreadableError):
        sampling.response(asked(prompt_logprobs=True), answer(**wrong))


def test_only_the_layers_that_are_asked_for_are_trained() -> None:
    attention = lora.adapter_spec(LoraConfig(rank=8, train_mlp=False))
    assert attention == {"type": "LoRA", "rank": 8, "targetModules": [*lora.ATTENTION]}
    trained = lora.trains(Adapter.model_validate(attention))
    assert trained == {"train_attn": True, "train_mlp": False, "train_unembed": False}
    assert lora.adapter_spec(LoraConfig(rank=8, seed=3)) == {"type": "LoRA", "rank": 8, "seed": 3}


def test_an_existing_model_is_trained_as_it_is() -> None:
    adapter = Adapter(rank=4, seed=7)
    assert lora.mismatch(LoraConfig(rank=4), adapter) == ""
    assert "rank: the model has 4, not 32" in lora.mismatch(LoraConfig(rank=32), adapter)
    assert "seed: the model has 7, not 1" in lora.mismatch(LoraConfig(rank=4, seed=1), adapter)
    full = Adapter(type="Full")
    assert "adapter.type Full" in lora.mismatch(LoraConfig(rank=4), full)


@pytest.mark.parametrize(
    ("status", "answered"), [(503, 429), (500, 429), (502, 429), (409, 422), (404, 404), (403, 403)]
)
def test_no_refusal_has_a_status_at_which_the_client_polls_without_a_pause(
    status: int, answered: int
) -> None:
    found = refusals.respond(RefusalError(status, "Reason", "what", "the remedy"))
    assert found.status == answered
    assert ("Retry-After" in found.headers) == (answered == 429)
    assert json.loads(found.body or b"")["detail"] == "what. the remedy"


def test_a_compressed_body_is_inflated_whole_and_never_beyond_the_limit() -> None:
    tensors = bytes(range(256)) * 4096
    packed = zstandard.compress(tensors)
    assert inflate(packed) == tensors
    for broken in (packed[:-4], packed + b"more", b"no zstd", b""):
        with pytest.raises(RefusalError) as refused:
            inflate(broken)
        assert refused.value.reason == "InvalidZstd"
    bomb = zstandard.compress(b"\0" * 2**28)
    assert len(bomb) < 2**17
    tracemalloc.start()
    with pytest.raises(RefusalError) as refused:
        inflate(bomb)
    assert refused.value.status == 413
    assert tracemalloc.get_traced_memory()[1] < 3 * MAX_INFLATED_BYTES
    tracemalloc.stop()
