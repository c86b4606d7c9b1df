"""What reading and writing JSON costs the gateway: pydantic_core, which it uses, and orjson.

orjson is no dependency: install it beside, for example with ``pip install --target DIR orjson``.

    PYTHONPATH=operator:.:DIR python -m bench.gateway.json_libraries
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median

import orjson
from bench.gateway.batch import batch
from pydantic_core import from_json, to_json

from espalier.gateway.routes.rewrite import rewrite_answer

ADAPTER, MODEL = "arith@a1a1a1a1a1a1", "arith"


def completion(tokens: int) -> bytes:
    """A chat completion as vLLM writes it: so many tokens, each with its log-prob."""
    source = random.Random(1)
    logprobs = [
        {"token": f"t{i}", "logprob": -source.random(), "bytes": [116, 48], "top_logprobs": []}
        for i in range(tokens)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "t" * tokens, "reasoning": None},
        "logprobs": {"content": logprobs},
        "token_ids": list(range(tokens)),
    }
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": ADAPTER,
        "choices": [choice],
        "prompt_token_ids": list(range(128)),
    }
    return to_json(answer)


def milliseconds(call: Callable[[], object], times: int = 200) -> float:
    """The median CPU time of a call."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return median(taken) * 1000


def renamed(read: Callable[[bytes], object], write: Callable[[object], bytes], body: bytes) -> None:
    """An answer read whole, its model renamed, and written again."""
    answer = read(body)
    assert isinstance(answer, dict)
    answer["model"] = MODEL
    answer["choices"][0]["prompt_token_ids"] = answer["prompt_token_ids"]
    write(answer)


def main() -> None:
    """Prints CPU milliseconds of each library, for small and large texts."""
    request = to_json(
        {"model": MODEL, "messages": [{"role": "user", "content": "What is 2 + 2?"}], "n": 1}
    )
    texts = {"request": request, "batch of 3 MB": batch().model_dump_json().encode()}
    for name, text in texts.items():
        print(
            f"read {name}: pydantic_core {milliseconds(lambda t=text: from_json(t)):.4f} ms,",
            end=" ",
        )
        print(f"orjson {milliseconds(lambda t=text: orjson.loads(t)):.4f} ms")
    for tokens in (128, 1024):
        body = completion(tokens)
        edited = milliseconds(lambda b=body: rewrite_answer(b, ADAPTER, MODEL))
        core = milliseconds(lambda b=body: renamed(from_json, to_json, b))
        other = milliseconds(lambda b=body: renamed(orjson.loads, orjson.dumps, b))
        print(
            f"answer of {tokens} tokens: edited as text {edited:.4f} ms, "
            f"pydantic_core {core:.4f} ms, orjson {other:.4f} ms"
        )


if __name__ == "__main__":
    main()
