"""What the gateway changes in a completion, and what it leaves alone."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.api.sampled import Sampled
from espalier.gateway.routes.rewrite import StreamRewriter, error_event, rewrite_answer
from espalier.untrusted import MAX_NESTED, UnreadableError

ADAPTER, ASKED = "arith@a1a1a1a1a1a1", "arith"


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def chunks(stream: bytes) -> list[Any]:
    events = stream.decode().removesuffix("\n\n").split("\n\n")
    return [json.loads(e.removeprefix("data: ")) for e in events if e != "data: [DONE]"]


def test_an_answer_names_the_model_as_asked_and_repeats_prompt_tokens_in_each_choice() -> None:
    answer = {"model": ADAPTER, "prompt_token_ids": [1, 2], "choices": [{"index": 0}, {"index": 1}]}
    rewritten = json.loads(rewrite_answer(json.dumps(answer).encode(), ADAPTER, ASKED))
    assert rewritten == {
        "model": ASKED,
        "prompt_token_ids": [1, 2],
        "choices": [
            {"index": 0, "prompt_token_ids": [1, 2]},
            {"index": 1, "prompt_token_ids": [1, 2]},
        ],
    }


def test_prompt_tokens_that_a_choice_has_already_stay() -> None:
    answer = {"model": ADAPTER, "choices": [{"prompt_token_ids": [3]}]}
    rewritten = json.loads(rewrite_answer(json.dumps(answer).encode(), ADAPTER, ASKED))
    assert rewritten["choices"] == [{"prompt_token_ids": [3]}]


def test_thoughts_have_both_names_that_clients_know() -> None:
    thinking = {"index": 0, "message": {"content": None, "reasoning": 'a "quoted" thought'}}
    answer = {"object": "chat.completion", "model": ADAPTER, "choices": [thinking]}
    body = json.dumps(answer, separators=(",", ":")).encode()
    (choice,) = json.loads(rewrite_answer(body, ADAPTER, ASKED))["choices"]
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"]
    rewriter = StreamRewriter(ADAPTER, ASKED)
    (chunk,) = chunks(rewriter.feed(event(choices=[{"delta": {"reasoning": "hm"}}])))
    assert chunk == {"choices": [{"delta": {"reasoning": "hm", "reasoning_content": "hm"}}]}


# Texts that look like the keys, as a model may write them.
TEXTS = st.sampled_from(
    ("", "é", '"choices":[{', '"index":', f'"model":"{ADAPTER}"', '"prompt_token_ids":[1]', "\\")
)
TOKENS = st.none() | st.lists(st.integers(0, 9), max_size=3)


@given(
    kind=st.sampled_from(("chat.completion", "text_completion")),
    texts=st.lists(TEXTS, max_size=3),
    own=TOKENS,
    prompt=TOKENS,
    nested=st.booleans(),
    spaced=st.booleans(),
    drawn=st.sampled_from((Sampled(), Sampled(0.7), Sampled(1.0, ("top_p 0.8",)))),
)
def test_whatever_an_answer_holds_only_the_model_and_prompt_tokens_change(
    *,
    kind: str,
    texts: list[str],
    own: list[int] | None,
    prompt: list[int] | None,
    nested: bool,
    spaced: bool,
    drawn: Sampled,
) -> None:
    extra = {"tool_calls": [{"index": 0, "model": ADAPTER}]} if nested else {}
    # vLLM gives a choice its prompt's tokens in completions, and the answer in chats.
    chat = kind == "chat.completion"
    tokens = {} if chat or own is None else {"prompt_token_ids": own}
    choices = [
        {"index": index, "text": text, "logprob": -0.1, **extra, **tokens}
        for index, text in enumerate(texts)
    ]
    answer = {"object": kind, "model": ADAPTER, "choices": choices}
    if chat:
        answer["prompt_token_ids"] = prompt
    body = json.dumps(answer, ensure_ascii=False, separators=None if spaced else (",", ":"))
    added: dict[str, object] = {"prompt_token_ids": prompt} if chat and prompt is not None else {}
    # Tokens that were not sampled plainly carry how, wherever they go.
    if not drawn.plain and (added or tokens):
        said = {"temperature": drawn.temperature, "shifted_by": [*drawn.shifted_by]}
        added["prompt_chunks"] = [{"type": "sampling", **said}]
    assert json.loads(rewrite_answer(body.encode(), ADAPTER, ASKED, drawn)) == {
        **answer,
        "model": ASKED,
        "choices": [{**choice, **added} for choice in choices],
    }


STREAM = b"".join(
    (
        event(model=ADAPTER, choices=[{"index": 0}], prompt_token_ids=[1, 2]),
        event(model=ADAPTER, choices=[{"index": 1}], prompt_token_ids=[1, 2]),
        event(choices=[{"delta": {"content": f'"model":"{ADAPTER}"'}}], model=ADAPTER),
        event(model=ADAPTER, choices=[{"delta": {"content": "é\n\n"}}]),
        b"data: [DONE]\n\n",
    )
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_is_rewritten_alike_however_it_is_cut(cuts: list[int]) -> None:
    rewriter = StreamRewriter(ADAPTER, ASKED)
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    out = b"".join(rewriter.feed(part) for part in parts) + rewriter.rest()
    first, second, third, fourth = chunks(out)
    assert out.endswith(b"data: [DONE]\n\n")
    for index, chunk in enumerate((first, second)):
        assert chunk == {
            "model": ASKED,
            "choices": [{"index": index, "prompt_token_ids": [1, 2]}],
            "prompt_token_ids": [1, 2],
        }
    # Generated text that looks like the field is text and stays.
    assert third == {"choices": [{"delta": {"content": f'"model":"{ADAPTER}"'}}], "model": ASKED}
    assert fourth == {"model": ASKED, "choices": [{"delta": {"content": "é\n\n"}}]}


def test_a_stream_says_beside_the_prompts_tokens_how_it_was_sampled() -> None:
    rewriter = StreamRewriter(ADAPTER, ASKED, Sampled(0.7))
    first, second, third, _ = chunks(rewriter.feed(STREAM))
    said = [{"type": "sampling", "temperature": 0.7, "shifted_by": []}]
    assert [c["choices"][0]["prompt_chunks"] for c in (first, second)] == [said, said]
    assert "prompt_chunks" not in third["choices"][0]


def test_what_follows_the_last_event_is_kept() -> None:
    rewriter = StreamRewriter(ADAPTER, ASKED)
    assert rewriter.feed(b"data: x\n\ndata: cut") == b"data: x\n\n"
    assert rewriter.rest() == b"data: cut"


def test_an_error_event_ends_the_stream() -> None:
    assert error_event({"error": {}}) == b'data: {"error":{}}\n\ndata: [DONE]\n\n'


def test_an_answer_of_many_log_probs_and_choices_is_edited_without_being_read() -> None:
    """16 answers of 16,000 tokens have more parts than are ever read."""
    entries = b",".join([b'{"token":"x","logprob":-0.5,"bytes":[120],"top_logprobs":[]}'] * 60_000)
    choices = b",".join(
        b'{"index":%d,"logprobs":{"content":[%s]}}' % (index, entries) for index in (2, 0, 1)
    )
    head = b'{"object":"chat.completion","model":"%s","prompt_token_ids":[1,2],' % ADAPTER.encode()
    answer = head + b'"choices":[' + choices + b"]}"
    assert answer.count(b"{") + answer.count(b"[") > MAX_NESTED
    rewritten = json.loads(rewrite_answer(answer, ADAPTER, ASKED))
    assert rewritten["model"] == ASKED
    assert [(c["index"], c["prompt_token_ids"]) for c in rewritten["choices"]] == [
        (index, [1, 2]) for index in (2, 0, 1)
    ]


@pytest.mark.parametrize(
    "body", [b"[1]", b"7", b"{", b"[" * 10_000, b"[" + b"[]," * MAX_NESTED + b"0]"]
)
def test_what_is_no_completion_is_not_passed_on(body: bytes) -> None:
    with pytest.raises(UnreadableError):
        rewrite_answer(body, ADAPTER, ASKED)


def test_an_event_without_an_end_is_not_held() -> None:
    rewriter = StreamRewriter(ADAPTER, ASKED)
    with pytest.raises(UnreadableError, match="over 8 MiB"):
        for _ in range(9):
            rewriter.feed(b"x" * 2**20)
