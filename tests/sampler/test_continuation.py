"""Continuing sampled tokens: what the chat template adds, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.sampler import qwen3

from espalier.sampler.continuation import (
    PLACEHOLDERS,
    ContinuationError,
    continued,
    continued_behind,
)

END, LINE, ASK, REPLY = 90, 91, 92, 93
# As a template renders: a question, an answer; then another question and the prompt to answer it.
EARLIER = [ASK, 1, 2, END, LINE, REPLY, 3, 4, END, LINE]
WHOLE = [*EARLIER, ASK, 5, END, LINE, REPLY]
LATER = [ASK, 5, END, LINE, REPLY]


@pytest.mark.parametrize(
    ("output", "closing"),
    [
        # 3 and 4 were sampled as 34, another way to write the same text.
        ([34, END], [LINE]),
        # Cut off by max_tokens: the template's end token closes the turn.
        ([34], [END, LINE]),
    ],
)
def test_what_was_sampled_stays_as_it_was(output: list[int], closing: list[int]) -> None:
    exact = [ASK, 1, 2, END, LINE, REPLY, *output]
    assert continued(exact, EARLIER, WHOLE, {END}) == [*exact, *closing, *LATER]


THINK, NO_MORE = 94, 95
# Qwen3: an empty think block in the last turn, which is gone once a question follows.
REWRITTEN = [ASK, 1, 2, END, LINE, REPLY, THINK, NO_MORE, 3, 4, END, LINE]


def behind(placeholder: int) -> list[int]:
    return [ASK, 1, 2, END, LINE, REPLY, placeholder, END, LINE, *LATER]


@pytest.mark.parametrize(
    ("output", "closing"),
    [([THINK, 6, NO_MORE, 34, END], [LINE]), ([THINK, 6, NO_MORE, 34], [END, LINE])],
)
def test_what_was_thought_stays_where_the_template_would_drop_it(
    output: list[int], closing: list[int]
) -> None:
    exact = [ASK, 1, 2, END, LINE, REPLY, *output]
    assert continued(exact, REWRITTEN, WHOLE, {END}) is None
    found = continued_behind(exact, (behind(80), behind(81)), WHOLE, {END})
    assert found == [*exact, *closing, *LATER]


@pytest.mark.parametrize(
    "renderings",
    [
        # The template leaves the turn out; closes it with text; adds other things than it would.
        (WHOLE, WHOLE),
        ([ASK, 80, LINE, *LATER], [ASK, 81, LINE, *LATER]),
        ([ASK, 80, END, LINE, 7], [ASK, 81, END, LINE, 7]),
    ],
)
def test_a_template_whose_addition_cannot_be_told_is_refused(
    renderings: tuple[list[int], list[int]],
) -> None:
    with pytest.raises(ContinuationError, match="leave prompt_token_ids out"):
        continued_behind([ASK, 1], renderings, WHOLE, {END})


def test_a_template_without_end_tokens_adds_later_messages_alone() -> None:
    assert continued([1, 9], [1, 2], [1, 2, 3], {END}) == [1, 9, 3]


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
ROME = {"role": "user", "content": "Weather in Rome?"}
CALLED = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
}


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    ("later", "shown"),
    [
        ({"role": "user", "content": "And in Oslo?"}, "And in Oslo?"),
        ({"role": "tool", "content": "21 C"}, "<tool_response>\n21 C\n</tool_response>"),
    ],
)
def test_qwen3_adds_the_later_message_alone(later: Any, shown: str, tools: Any) -> None:
    tokenizer = qwen3.make_tokenizer()

    def rendered(*messages: Any) -> list[int]:
        whole = tokenizer.apply_chat_template(
            list(messages), tools=tools, add_generation_prompt=True, return_dict=True
        )
        return list(whole["input_ids"])

    thought = tokenizer.encode("<think>\nhm\n</think>\n\nLet me see.<|im_end|>")
    exact = [*rendered(ROME), *thought]
    first, second = (
        rendered(ROME, {"role": "assistant", "content": content}, later) for content in PLACEHOLDERS
    )
    ends = {tokenizer.eos_token_id}
    found = continued_behind(exact, (first, second), rendered(ROME, CALLED, later), ends)
    assert found[: len(exact)] == exact
    assert tokenizer.decode(found[len(exact) :]) == (
        f"\n<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\n"
    )
