"""What of a completion's request its log-probs depend on."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.api.sampled import Sampled, sampled

TOOLS = [{"type": "function", "function": {"name": "add"}}]
STRICT = [{"type": "function", "function": {"name": "add", "strict": True}}]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"temperature": None, "top_p": None, "tools": None, "response_format": None},
        {"temperature": 1, "top_p": 1.0, "top_k": -1, "min_p": 0},
        {"top_k": 0, "repetition_penalty": 1.0, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"logit_bias": {}, "bad_words": [], "min_tokens": 0, "use_beam_search": False},
        {"response_format": {"type": "text"}, "structured_outputs": None},
        # The model writes these as it likes; a parser reads them afterwards.
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "auto"},
        {"tools": STRICT, "tool_choice": "none"},
        # These end a sample, or choose what is shown of it.
        {"stop": ["x"], "stop_token_ids": [7], "max_tokens": 3, "n": 4, "seed": 1, "logprobs": 5},
    ],
)
def test_a_plain_sample_is_of_the_policy_itself(request_: dict[str, Any]) -> None:
    assert sampled(request_) == Sampled(1.0, ())
    assert sampled(request_).plain


@pytest.mark.parametrize(
    ("given", "temperature"),
    [(0.7, 0.7), ("0.7", 0.7), (2, 2.0), (0, 0.0), (1e-6, 0.0), (1e-3, 0.01)],
)
def test_the_temperature_is_the_one_that_vllm_samples_at(given: Any, temperature: float) -> None:
    assert sampled({"temperature": given}) == Sampled(temperature)
    assert not sampled({"temperature": given}).plain


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"top_p": 0.8}, "top_p 0.8"),
        ({"top_p": "0.8"}, "top_p 0.8"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 5}, "top_k 5"),
        ({"min_p": 0.1}, "min_p 0.1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty 1.1"),
        ({"presence_penalty": -1}, "presence_penalty -1"),
        ({"frequency_penalty": 1}, "frequency_penalty 1"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"allowed_token_ids": [5]}, "allowed_token_ids"),
        ({"min_tokens": 3}, "min_tokens 3"),
        # Refused by the rollout; no matter what, the gateway must not fail on it.
        ({"top_k": 10**400}, "top_k"),
        ({"thinking_token_budget": 9}, "thinking_token_budget 9"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice required"),
        ({"tools": TOOLS, "tool_choice": {"function": {}}}, "tool_choice of a function"),
        ({"tools": STRICT}, "strict of a tool"),
        ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls false"),
    ],
)
def test_what_shifts_the_distribution_is_named(request_: dict[str, Any], said: str) -> None:
    assert sampled(request_) == Sampled(1.0, (said,))
