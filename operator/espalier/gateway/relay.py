"""Rewrites completions on their way back: our model name, and prompt tokens in every choice.

vLLM puts a chat's ``prompt_token_ids`` at the top level of the answer (in a stream: of the first
chunk of each choice); HUD's agent reads them from the choice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_EVENT_END = b"\n\n"
_DATA = b"data: "
_PROMPT_TOKENS = b'"prompt_token_ids":['


def rewrite_answer(body: bytes, model: str) -> bytes:
    """A whole completion: ``model`` as the caller named it, prompt tokens in every choice."""
    answer = json.loads(body)
    answer["model"] = model
    _copy_prompt_tokens(answer)
    return _dump(answer)


class StreamRewriter:
    """The same for server-sent events; parses only the events that carry prompt tokens.

    Args:
        adapter: the name that the rollout answers with.
        model: the name that the caller asked for.
    """

    def __init__(self, adapter: str, model: str) -> None:
        # An unescaped quote cannot stand inside a JSON string, so this matches keys alone.
        self._theirs = b'"model":' + json.dumps(adapter).encode()
        self._ours = b'"model":' + json.dumps(model).encode()
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The complete events among what has come so far, rewritten."""
        *events, self._rest = (self._rest + data).split(_EVENT_END)
        return b"".join(self._rewrite(event) + _EVENT_END for event in events)

    def rest(self) -> bytes:
        """What followed the last complete event."""
        return self._rest

    def _rewrite(self, event: bytes) -> bytes:
        event = event.replace(self._theirs, self._ours, 1)
        if _PROMPT_TOKENS not in event or not event.startswith(_DATA):
            return event
        chunk = json.loads(event.removeprefix(_DATA))
        _copy_prompt_tokens(chunk)
        return _DATA + _dump(chunk)


def error_event(body: dict[str, object]) -> bytes:
    """An error inside a stream that has begun, and its end."""
    return b"".join(_DATA + part + _EVENT_END for part in (_dump(body), b"[DONE]"))


def _copy_prompt_tokens(answer: dict[str, Any]) -> None:
    tokens = answer.get("prompt_token_ids")
    if tokens is not None:
        for choice in _choices(answer):
            choice["prompt_token_ids"] = tokens


def _choices(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from answer.get("choices") or ()


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
