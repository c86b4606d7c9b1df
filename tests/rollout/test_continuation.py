"""Continuing sampled tokens: what the chat template adds, and nothing else."""

from __future__ import annotations

import pytest

from espalier.rollout.continuation import ContinuationError, continued

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


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(ContinuationError, match="leave prompt_token_ids out"):
        continued([ASK, 1], EARLIER, [ASK, 7, *WHOLE[2:]], {END})


def test_a_template_without_end_tokens_adds_later_messages_alone() -> None:
    assert continued([1, 9], [1, 2], [1, 2, 3], {END}) == [1, 9, 3]
