"""Tool calls, thoughts and later turns of a Qwen3 on a real vLLM, with their exact tokens.

The model is random: a grammar makes it write a tool call, a bias keeps it thinking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.sampler import qwen3, server, tiny
from transformers import AutoTokenizer

from espalier.api.exit_codes import USER_MISTAKE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ARGUMENTS = '{"city": "Rome"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
ASK = [{"role": "user", "content": "Weather in Rome?"}]
# Without thoughts the grammar holds from the first token.
CALLING: dict[str, Any] = {
    "tools": TOOLS,
    "structured_outputs": {"regex": re.escape(f"Let me see.\n{CALL}")},
    "chat_template_kwargs": {"enable_thinking": False},
    "max_tokens": 120,
    "logprobs": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def rollout(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Rollout]:
    """With both parsers left to Auto."""
    volume = tmp_path_factory.mktemp("weights")
    process = server.start(volume, tiny.commit_base(volume, model), max_model_tokens=1024)
    try:
        server.wait_healthy(process)
        yield process
    finally:
        process.stop()


def test_a_parser_of_another_family_ends_the_pod_before_it_serves(
    model: Path, tmp_path: Path
) -> None:
    """vLLM would start with it, and fail every chat."""
    base = tiny.commit_base(tmp_path, model)
    process = server.start(tmp_path, base, tool_call_parser="llama3_json")
    try:
        assert process.process.wait(200) == USER_MISTAKE
    finally:
        process.stop()
    problem = json.loads(process.log.read_text().splitlines()[-1])
    assert problem["reason"] == "ParserMisfit"
    assert problem["detail"].startswith("spec.rollout.toolCallParser is llama3_json: ")


def choice_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def test_a_tool_call_comes_beside_its_exact_tokens(rollout: server.Rollout, tokenizer: Any) -> None:
    choice = choice_of(rollout.chat("base", ASK, **CALLING))
    message, tokens = choice["message"], choice["token_ids"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert message["content"].strip() == "Let me see."
    assert choice["finish_reason"] == "tool_calls"
    assert tokenizer.decode(tokens) == f"Let me see.\n{CALL}{qwen3.END}"
    assert len(choice["logprobs"]["content"]) == len(tokens)


def test_a_stream_has_the_same_call_and_every_token(
    rollout: server.Rollout, tokenizer: Any
) -> None:
    answer = rollout.chat("base", ASK, stream=True, **CALLING)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    chunks = [json.loads(event)["choices"][0] for event in events[:-1]]
    tokens = [token for chunk in chunks for token in chunk.get("token_ids") or []]
    entries = [e for chunk in chunks for e in (chunk.get("logprobs") or {}).get("content") or []]
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls") or []]
    arguments = "".join(call["function"].get("arguments") or "" for call in calls)
    assert calls[0]["function"]["name"] == "weather"
    assert json.loads(arguments) == {"city": "Rome"}
    assert tokenizer.decode(tokens) == f"Let me see.\n{CALL}{qwen3.END}"
    assert len(entries) == len(tokens)


def test_thoughts_are_apart_from_content_and_their_tokens_are_there(
    rollout: server.Rollout, tokenizer: Any
) -> None:
    on = {str(tokenizer.convert_tokens_to_ids(word)): -100 for word in ("</think>", qwen3.END)}
    choice = choice_of(
        rollout.chat("base", ASK, max_tokens=8, logit_bias=on, logprobs=True, temperature=0)
    )
    assert not choice["message"]["content"]
    # The last token may be a part of a character.
    thought = tokenizer.decode(choice["token_ids"]).rstrip("\ufffd")
    assert thought and choice["message"]["reasoning"].rstrip("\ufffd") == thought
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"]) == 8


def test_without_thinking_all_is_content(rollout: server.Rollout, tokenizer: Any) -> None:
    answer = rollout.chat(
        "base",
        ASK,
        max_tokens=8,
        structured_outputs={"regex": "yes"},
        chat_template_kwargs={"enable_thinking": False},
    )
    message = choice_of(answer)["message"]
    assert (message["content"], message.get("reasoning")) == ("yes", None)
    assert tokenizer.decode(answer.json()["prompt_token_ids"]).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": TOOLS[0]["function"]}]
)
def test_a_call_that_must_be_made_is_made(rollout: server.Rollout, choice: Any) -> None:
    answer = rollout.chat(
        "base",
        ASK,
        tools=TOOLS,
        tool_choice=choice,
        chat_template_kwargs={"enable_thinking": False},
        max_tokens=200,
    )
    message = choice_of(answer)["message"]
    cut = choice_of(answer)["finish_reason"] == "length"
    assert cut or message["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize(
    ("later", "added"),
    [
        (
            {"role": "user", "content": "And in Oslo?"},
            "\n<|im_start|>user\nAnd in Oslo?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            {"role": "tool", "tool_call_id": "1", "content": "21 C"},
            "\n<|im_start|>user\n<tool_response>\n21 C\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
    ],
)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_later_turn_begins_with_the_exact_tokens_of_the_turns_before(
    rollout: server.Rollout, tokenizer: Any, later: Any, added: str, tools: Any
) -> None:
    """The template drops thoughts of earlier turns, and would write tool calls in its own way."""
    with_tools = {"tools": tools} if tools else {}
    first = rollout.chat("base", ASK, **with_tools, max_tokens=1)
    sampled = tokenizer.encode(f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}{qwen3.END}")
    exact = [*first.json()["prompt_token_ids"], *sampled]
    turn = {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning": "hm",
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "weather", "arguments": ARGUMENTS},
            }
        ],
    }
    second = rollout.chat(
        "base",
        [*ASK, turn, later],
        **with_tools,
        max_tokens=1,
        prompt_token_ids=exact,
        continuation_from=2,
    )
    assert second.status_code == 200, second.text
    assert second.json()["prompt_token_ids"] == [*exact, *tokenizer.encode(added)]


CHOSEN = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"chat_template_kwargs": {"enable_thinkin": False}},
            "does not use chat_template_kwargs.enable_thinkin; it uses: ",
        ),
        ({"chat_template_kwargs": {"tools": TOOLS}}, "send it as tools"),
        ({"documents": [{"title": "a", "text": "b"}]}, "does not use documents"),
        ({"include_reasoning": False}, "hides token ids"),
        ({"web_search_options": {}}, "web_search_options is unknown here"),
        ({"tools": []}, "`tools` must not be an empty array"),
        ({"tools": [{"type": "function"}], "tool_choice": CHOSEN}, "tools is not of its type"),
        ({"prompt_token_ids": {}, "continuation_from": 1}, "prompt_token_ids is not a list"),
        ({"prompt_token_ids": [5]}, "continuation_from is None, and there are"),
        ({"top_k": 2**70}, "top_k is a number beyond 64 bits"),
    ],
)
def test_what_the_template_would_leave_out_is_refused(
    rollout: server.Rollout, asked: dict[str, Any], said: str
) -> None:
    answer = rollout.chat("base", ASK, max_tokens=1, **asked)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_chat_that_asks_for_more_than_the_context_may_fill_it(
    rollout: server.Rollout, name: str
) -> None:
    """HUD's cookbooks ask for 1,024 tokens, whatever the model holds."""
    exact = {"prompt_token_ids": [5] * 990, "continuation_from": 1}
    chat = [*ASK, {"role": "user", "content": ""}]
    answer = rollout.chat("base", chat, **exact, **{name: 10_000}, ignore_eos=True)
    choice = choice_of(answer)
    prompt = answer.json()["prompt_token_ids"]
    assert (len(prompt) + len(choice["token_ids"]), choice["finish_reason"]) == (1024, "length")
