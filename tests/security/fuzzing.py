"""Good bodies to be spoilt, how hostile requests are sent, and what no answer may be."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
from tests.security.hostile_requests import Hostile
from tests.trainer import tiny
from tests.trainer.test_bad_input import batch
from yarl import URL

AT_ONCE = 8
SECONDS = 120.0
SAMPLE = {"prompt_token_ids": [1, 2], "output_token_ids": [3], "output_logprobs": [-1.0]}
GATEWAYS: list[dict[str, Any]] = [
    {"model": "arith", "prompt": "1+1=", "max_tokens": 1, "n": 1, "logprobs": 1},
    {"model": "arith", "messages": [{"role": "user", "content": [{"type": "text", "text": "1"}]}]},
    {
        "model": "arith",
        "messages": [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}],
        "prompt_token_ids": [1, 2],
        "continuation_from": 1,
        "structured_outputs": {"regex": "a{1,9}"},
    },
    {"inputs": [{"samples": [SAMPLE], "reward": 1.0}], "loss_fn": "ppo", "group_size": 1},
    {"learning_rate": 1e-3, "metrics": {"a": 1.0}},
    {"base": "arith", "name": "forked", "checkpoint": "arith-000001", "model": "arith"},
    {"name": "held-out", "tasks": 3, "metrics": {"mean_reward": 0.5}},
    {"checkpoint_id": "arith-000001", "reward": 1.0, "model": "arith"},
]
TRAINERS: list[dict[str, Any]] = [
    json.loads(batch()),
    json.loads(batch(first={"advantage": 0.5}, weights=[1.0, 1.0])),
    {"forward_id": "0" * 32, "weights": [[1.0, -1.0]]},
    {
        "learning_rate": 1e-3,
        "eps": 1e-8,
        "metrics": {"a": 1.0},
        "cursor": {"a": [1]},
        "rollouts": [],
    },
    json.loads(tiny.assignment().model_dump_json()),
    {"model": "arith", "reward": 1.0, "samples": [SAMPLE], "checkpoint_id": "arith-000001"},
    {},
]
ONE_TOKEN = {"model": "base", "max_tokens": 1}
SAMPLERS: list[dict[str, Any]] = [
    {**ONE_TOKEN, "prompt": "1+1=", "n": 1, "logprobs": 1, "seed": 1},
    {**ONE_TOKEN, "prompt": [5, 6], "temperature": 0.5, "stop": ["x"]},
    {
        **ONE_TOKEN,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "1"}]}],
        "structured_outputs": {"regex": "a{1,9}"},
    },
    {
        **ONE_TOKEN,
        "prompt": "1+1=",
        "max_tokens": 2,
        "echo": True,
        "frequency_penalty": 0.1,
        "logit_bias": {"5": 1.0},
        "logprobs": 1,
        "n": 2,
        "presence_penalty": 0.1,
        "seed": 1,
        "stop": ["x"],
        "suffix": None,
        "temperature": 0.7,
        "top_p": 0.9,
        "user": "u",
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "stop_token_ids": [7],
        "min_tokens": 1,
        "skip_special_tokens": True,
        "truncate_prompt_tokens": 5,
        "allowed_token_ids": [5, 6, 7],
        "prompt_logprobs": 1,
        "bad_words": ["a"],
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    },
    {
        **ONE_TOKEN,
        "prompt": [[5, 6], [7]],
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "a",
                "schema": {"type": "object", "properties": {"a": {"type": "string"}}},
            },
        },
        "cache_salt": "s",
        "priority": 0,
        "kv_transfer_params": {"a": 1},
        "vllm_xargs": {"a": 1},
        "use_beam_search": False,
        "length_penalty": 1.0,
    },
    {
        **ONE_TOKEN,
        "prompt": ["a", "b"],
        "use_beam_search": True,
        "n": 2,
        "logprob_token_ids": [5, 6],
        "logprobs": 1,
        "structured_outputs": {
            "json": {"type": "object"},
            "choice": ["a", "b"],
            "grammar": 'root ::= "a"',
            "whitespace_pattern": " ",
        },
        "session_id": "s",
        "repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 1, "min_count": 2},
    },
    {
        **ONE_TOKEN,
        "prompt": ["a", "b"],
        "logprob_token_ids": [5, 6],
        "logprobs": 1,
        "structured_outputs": {"structural_tag": "{}", "disable_any_whitespace": True},
    },
    {
        **ONE_TOKEN,
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "user", "content": "1", "name": "n"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"a":1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        "max_completion_tokens": 2,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": "d",
                    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
                },
            }
        ],
        "tool_choice": "none",
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "parallel_tool_calls": True,
        "stop": "x",
        "seed": 3,
    },
    {
        **ONE_TOKEN,
        "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "echo": True,
        "chat_template_kwargs": {"a": 1},
        "documents": [{"title": "t", "text": "x"}],
        "reasoning_effort": "low",
        "include_reasoning": True,
        "thinking_token_budget": 5,
        "response_format": {"type": "json_object"},
        "mm_processor_kwargs": {"a": 1},
        "media_io_kwargs": {"image": {"a": 1}},
    },
    {
        **ONE_TOKEN,
        "messages": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "3"},
        ],
        "prompt_token_ids": [5, 6, 7],
        "continuation_from": 2,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    {
        **ONE_TOKEN,
        "messages": [{"role": "user", "content": "1"}],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "chat_template": "{{ messages }}",
        "add_special_tokens": True,
        "return_tokens_as_token_ids": True,
        "logits_processors": ["a"],
        "structured_outputs": {"json": '{"type":"string"}'},
    },
    {
        **ONE_TOKEN,
        "messages": [{"role": "user", "content": "1"}],
        "temperature": 0.3,
        "top_p": 0.4,
        "top_k": 3,
        "min_p": 0.1,
        "logit_bias": {"3": -100},
        "bad_words": ["x"],
        "allowed_token_ids": [1, 2, 3],
        "prompt_logprobs": 2,
        "truncate_prompt_tokens": 3,
        "cache_salt": "x",
        "min_tokens": 0,
        "ignore_eos": True,
        "presence_penalty": 0.1,
        "repetition_penalty": 1.2,
        "stop_token_ids": [9],
    },
]
# What a pod that is not ready, or not ours, is told as; never a fault of the gateway.
UPSTREAM = frozenset({502, 503, 504})
# Of the inside: a traceback, or a file of the program.
INSIDE = re.compile(rb"Traceback|\.py\b")


@dataclass(frozen=True)
class Answered:
    """A request and its answer; status 0: there was none, and the body says why."""

    request: Hostile
    status: int
    body: bytes

    def fault(self, upstream: frozenset[int] = frozenset()) -> str:
        """What is wrong with the answer; empty if nothing is. ``upstream``: statuses of pods."""
        if not self.status:
            return "no answer"
        # A stream that has begun tells its error in a chunk.
        if b'"code":500' in self.body or (self.status >= 500 and self.status not in upstream):
            return "a fault of the server"
        return "it tells of the inside" if INSIDE.search(self.body) else ""


async def told(
    session: aiohttp.ClientSession,
    base: str,
    drawn: Iterable[Hostile],
    headers: Callable[[Hostile], dict[str, str]],
) -> list[Answered]:
    """The answer to each request.

    ``headers`` makes those of who sends a request; its own come after them.
    """
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(request: Hostile) -> Answered:
        async with slots:
            try:
                answer = await session.request(
                    request.method,
                    URL(base + request.path, encoded=True),
                    data=request.body,
                    headers={**headers(request), **request.headers},
                    timeout=aiohttp.ClientTimeout(total=SECONDS),
                    allow_redirects=False,
                )
                return Answered(request, answer.status, await answer.read())
            except (aiohttp.ClientError, TimeoutError) as error:
                return Answered(request, 0, repr(error).encode())

    return [*await asyncio.gather(*(one(request) for request in drawn))]


def unconnected() -> aiohttp.TCPConnector:
    """A connection for each request.

    A server may close one whose body it does not read, which the next request would run into.
    """
    return aiohttp.TCPConnector(force_close=True)
