"""CPU that vLLM's parsers of tool calls and thoughts take for an answer, as a rollout runs them.

Each answer thinks, says a word and calls a tool. `whole` is an answer that comes at once, `stream`
the same token by token; both with the parser made anew, as for every request. CPU time of this
process, which does nothing else; no model runs.

    PYTHONPATH=operator:. python -m bench.tool_parsers [--answers 100]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from tests.sampler import qwen3
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager

TOOL = {
    "type": "function",
    "function": {
        "name": "move",
        "parameters": {"type": "object", "properties": {"direction": {"type": "string"}}},
    },
}
# Parser of tool calls, parser of thoughts, and how a family writes the same call.
FORMS = (
    (
        "hermes",
        "qwen3",
        '<tool_call>\n{"name": "move", "arguments": {"direction": "left"}}\n</tool_call>',
    ),
    (
        "qwen3_coder",
        "qwen3",
        "<tool_call>\n<function=move>\n<parameter=direction>\nleft\n</parameter>\n</function>\n"
        "</tool_call>",
    ),
)
# Words of thought before the call.
LENGTHS = (2, 100, 1000)


def parser_of(tools: str, thoughts: str) -> Callable[[Any, Any], Any]:
    """Makes a parser for a request, as vLLM's server does."""
    found = ParserManager.get_parser(
        tool_parser_name=tools, reasoning_parser_name=thoughts, enable_auto_tools=True
    )
    assert found is not None
    return lambda tokenizer, request: found(tokenizer, request.tools, chat_template_kwargs={})


def text_of(call: str, words: int) -> str:
    """An answer that thinks so many words, and calls."""
    return "<think>\n" + "so then " * (words // 2) + "\n</think>\n\n" + call


def whole(make: Any, tokenizer: Any, request: Any, text: str, tokens: list[int]) -> int:
    """How many calls were found."""
    parser = make(tokenizer, request)
    _, _, calls = parser.parse(text, request, enable_auto_tools=True, model_output_token_ids=tokens)
    return len(calls or ())


def stream(make: Any, tokenizer: Any, request: Any, text: str, tokens: list[int]) -> int:
    """How many calls were begun."""
    parser, begun = make(tokenizer, request), set[int]()
    for number, token in enumerate(tokens):
        delta = parser.parse_delta(
            delta_text=tokenizer.decode([token]),
            delta_token_ids=[token],
            request=request,
            prompt_token_ids=[0],
            finished=number + 1 == len(tokens),
        )
        begun |= {call.index for call in (delta.tool_calls if delta else None) or ()}
    return len(begun)


def main() -> None:
    """Prints a line for each form and length."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--answers", type=int, default=100)
    answers = given.parse_args().answers
    tokenizer = qwen3.make_tokenizer()
    request = ChatCompletionRequest(
        model="m", messages=[{"role": "user", "content": "1"}], tools=[TOOL], tool_choice="auto"
    )
    for tools, thoughts, call in FORMS:
        make = parser_of(tools, thoughts)
        for words in LENGTHS:
            text = text_of(call, words)
            tokens = tokenizer.encode(text)
            figures = []
            for way, times in ((whole, answers), (stream, max(1, answers // 10))):
                assert way(make, tokenizer, request, text, tokens) == 1, (tools, way.__name__)
                began = time.process_time()
                for _ in range(times):
                    way(make, tokenizer, request, text, tokens)
                spent = (time.process_time() - began) / times
                figures.append(f"{way.__name__} {1000 * spent:8.3f} ms")
            print(f"{tools:12} {len(tokens):6} tokens  {'  '.join(figures)} of CPU an answer")


if __name__ == "__main__":
    main()
