"""A scripted pod: rollout and trainer in one, with their routes, status codes and JSON.

It answers without a model, so that hundreds of requests can be in flight on two cores. A completion
is held as long as its request says (``hold_seconds``); a train command is read and answered.

    python -m bench.gateway.pods PORT
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import uvloop
from aiohttp import web
from dev.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
# The last field of an answer: for how long it was held in fact, because timers come late.
HELD = "held_seconds"
PROMPT = list(range(300, 556))
DIGEST = "sha256:" + "b2" * 32
STEP = {"step": 2, "checkpoint_id": "arith-000002", "sampler_path": "p", "state_path": "p"}
GRADIENTS = {"metrics": {"loss:sum": 1.0}, "num_datums": 64}


@functools.cache
def chat(model: str, tokens: int) -> bytes:
    """A chat completion as vLLM writes it, with log-probs and token ids."""
    source = random.Random(tokens)
    entries = [
        {"token": " sum", "logprob": -source.random(), "bytes": [32, 115, 117], "top_logprobs": []}
        for _ in range(tokens)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": " sum" * tokens, "tool_calls": []},
        "logprobs": {"content": entries},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": [source.randrange(49152) for _ in range(tokens)],
    }
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [choice],
        "usage": {"prompt_tokens": len(PROMPT), "completion_tokens": tokens},
        "prompt_logprobs": None,
        "prompt_token_ids": PROMPT,
    }
    return json.dumps(answer, separators=(",", ":")).encode()


async def complete(request: web.Request) -> web.StreamResponse:
    """One answer after the time that its request names; a stream is held open as long."""
    body = await request.json()
    if body.get("stream"):
        return await _stream(request, body)
    began = time.perf_counter()
    await asyncio.sleep(body["hold_seconds"])
    answer = chat(body["model"], body["max_tokens"])
    held = f',"{HELD}":{time.perf_counter() - began:.6f}}}'.encode()
    return web.Response(body=answer.removesuffix(b"}") + held, content_type="application/json")


@functools.cache
def text(tokens: int) -> bytes:
    """A completion of tokens as vLLM writes it for Tinker's clients."""
    source = random.Random(tokens)
    scored = {
        "token_logprobs": [-source.random() for _ in range(tokens)],
        "top_logprobs": [{} for _ in range(tokens)],
    }
    choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": scored}
    choice["token_ids"] = [source.randrange(49152) for _ in range(tokens)]
    answer = {"id": "cmpl-1", "object": "text_completion", "choices": [choice]}
    return json.dumps(answer, separators=(",", ":")).encode()


async def complete_tokens(request: web.Request) -> web.Response:
    """A completion of tokens, held for the milliseconds that its seed names."""
    body = await request.json()
    await asyncio.sleep(body.get("seed", 0) / 1e3)
    return web.Response(body=text(body["max_tokens"]), content_type="application/json")


async def _stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    delta = {"delta": {"content": " sum"}, "index": 0}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": body["model"]}
    # The client closes its streams when it has measured.
    with suppress(ConnectionResetError):
        for number in range(body["max_tokens"]):
            prompt = {"prompt_token_ids": PROMPT} if not number else {}
            event = json.dumps({**chunk, "choices": [delta], **prompt}, separators=(",", ":"))
            await response.write(f"data: {event}\n\n".encode())
            await asyncio.sleep(body["hold_seconds"] / body["max_tokens"])
        await response.write(b"data: [DONE]\n\n")
    return response


async def train(request: web.Request) -> web.Response:
    """Reads the whole command, as a trainer does before it computes."""
    await request.read()
    if request.match_info["command"] == "optim-step":
        headers = {"Espalier-Checkpoint-Digest": DIGEST}
        return web.json_response({**STEP, "model": "arith"}, headers=headers)
    return web.json_response(GRADIENTS)


def app() -> web.Application:
    made = web.Application(client_max_size=2**30)
    made.router.add_post("/v1/chat/completions", complete)
    made.router.add_post("/v1/completions", complete_tokens)
    made.router.add_post("/train/{command}", train)
    made.router.add_get("/healthz", lambda _: asyncio.sleep(0, web.Response(text="ok")))
    return made


@contextmanager
def pods() -> Iterator[tuple[int, int]]:
    """The scripted pod as a process of its own: its port and its pid."""
    port = free_port()
    process = Popen([sys.executable, "-m", "bench.gateway.pods", str(port)], cwd=ROOT)
    try:
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    web.run_app(
        app(),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )
