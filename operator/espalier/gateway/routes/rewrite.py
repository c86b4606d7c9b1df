"""Rewrites completions on their way back: our model name, thoughts, and in every choice the
prompt's tokens and how it was sampled.

vLLM puts a chat's ``prompt_token_ids`` at the top level of the answer (in a stream: of the first
chunk of each choice); HUD's agent reads them from the choice. vLLM calls thoughts ``reasoning``;
clients of the older field read ``reasoning_content``, so both are there. A choice that was not
sampled plainly says so in ``prompt_chunks``, which HUD's client sends on to the trainer.
"""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp
from pydantic_core import to_json

from espalier.api.sampled import Sampled
from espalier.untrusted import UnreadableError, read_json

PLAIN = Sampled()
CHUNKS = "prompt_chunks"
_EVENT_END = b"\n\n"
_DATA = b"data: "
_CHAT = b'"object":"chat.completion"'
_CHOICES = b'"choices":[{'
_INDEX = b'"index":'
_PROMPT_TOKENS = b'"prompt_token_ids":['
# The key and the opening quote of its text. The value is null if the model did not think.
_THOUGHTS = b'"reasoning":"'
# The longest event carries the tokens of a prompt as long as a body may be.
MAX_EVENT_BYTES = 8 * 2**20
# The last event of a stream that was asked for it, and what an answer took.
_NO_CHOICES = b'"choices":[]'
_USAGE = re.compile(rb'"usage": ?\{[^{}]*?"total_tokens": ?([0-9]{1,9})')
# Where a choice begins, and no other object of a completion. A quote inside a string is escaped.
_CHOICE = re.compile(rb'\{"index":([0-9]{1,6}),')
# How a vLLM that shuts down ends what it is sampling, and what still arrives: with the tokens so
# far, or with none.
_ABORTED = re.compile(rb'"finish_reason": ?"abort"')
_TOKEN_LIST = re.compile(re.escape(_PROMPT_TOKENS) + rb"[0-9,]*\]")


def rewrite_answer(body: bytes, adapter: str, model: str, drawn: Sampled = PLAIN) -> bytes:
    """A whole completion: ``model`` as the caller named it, prompt tokens in every choice.

    An answer of vLLM's form is edited as text. Reading and writing a thousand log-probs takes
    milliseconds, in which the gateway would serve nobody else.

    Args:
        body: of a rollout's answer.
        adapter: the name that the rollout answers with.
        model: the name that the caller asked for.
        drawn: how it was sampled.

    Raises:
        UnreadableError: it is not a completion, or too large to be parsed.
    """
    return _edited(body, adapter, model, drawn) or _rewritten(body, model, drawn)


def tokens_of(answer: bytes) -> int:
    """The tokens of prompt and answers, as the rollout counts them; 0 if it does not say.

    A quote inside a string is escaped, so no text that was sampled is taken for it.
    """
    found = _USAGE.search(answer)
    return int(found[1]) if found else 0


def refuse_cut_short(answer: bytes) -> None:
    """Treats a completion, or events of one, that its rollout gave up as a lost connection.

    The tokens of such a completion are no sample of the model. A quote inside a string is escaped,
    so text that was sampled cannot be mistaken for the mark.

    Raises:
        aiohttp.ClientPayloadError: it was given up.
    """
    if _ABORTED.search(answer) is not None:
        raise aiohttp.ClientPayloadError("it ends, and gave up what it was sampling")


def _edited(body: bytes, adapter: str, model: str, drawn: Sampled) -> bytes | None:
    """Edits the text without parsing it; None if a key does not occur as often as expected."""
    theirs = _named(adapter)
    if body.count(theirs) != 1 or body.count(_CHOICES) != 1 or _THOUGHTS in body:
        return None
    # An index inside a choice begins at 0 again.
    choices = sorted(int(number) for number in _CHOICE.findall(body))
    if choices != list(range(body.count(_INDEX))):
        return None
    renamed = body.replace(theirs, _named(model), 1)
    if _PROMPT_TOKENS not in renamed:
        return renamed
    added = b"" if drawn.plain else to_json({CHUNKS: [drawn.chunk()]})[1:-1] + b","
    # The choices of other completions have their prompt's tokens.
    if _CHAT in renamed:
        lists = _TOKEN_LIST.findall(renamed)
        if len(lists) != 1 or renamed.count(_PROMPT_TOKENS) != 1:
            return None
        added += lists[0] + b","
    return _CHOICE.sub(lambda begun: b"{" + added + begun[0][1:], renamed) if added else renamed


def _rewritten(body: bytes, model: str, drawn: Sampled) -> bytes:
    answer = read_json(body)
    if not isinstance(answer, dict):
        raise UnreadableError("it is not an object")
    answer["model"] = model
    _complete_choices(answer, drawn)
    _copy_thoughts(answer, "message")
    return to_json(answer, inf_nan_mode="constants")


def _named(model: str) -> bytes:
    """The key and its value. An unescaped quote cannot stand inside a JSON string, so bytes that
    begin and end with one match keys alone."""
    return b'"model":' + json.dumps(model).encode()


class StreamRewriter:
    """Rewrites server-sent events; parses only those that carry prompt tokens or thoughts.

    Args:
        adapter: the name that the rollout answers with.
        model: the name that the caller asked for.
        drawn: how it was sampled.
        usage: whether the caller reads the event that counts the tokens.
    """

    def __init__(
        self, adapter: str, model: str, drawn: Sampled = PLAIN, *, usage: bool = True
    ) -> None:
        self._drawn = drawn
        self._usage = usage
        self._events = 0
        self._tokens = 0
        self._theirs = _named(adapter)
        self._ours = _named(model)
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The complete events among what has come so far, rewritten.

        Raises:
            UnreadableError: an event is too long, or one with prompt tokens is not JSON.
        """
        *events, self._rest = (self._rest + data).split(_EVENT_END)
        if max(map(len, (*events, self._rest))) > MAX_EVENT_BYTES:
            raise UnreadableError(f"an event is over {MAX_EVENT_BYTES // 2**20} MiB")
        rewritten = (self._rewrite(event) for event in events)
        return b"".join(event + _EVENT_END for event in rewritten if event)

    @property
    def tokens(self) -> int:
        """The tokens so far: as the rollout counted them, or one for each event before that."""
        return self._tokens or self._events

    def rest(self) -> bytes:
        """What followed the last complete event."""
        return self._rest

    def _rewrite(self, event: bytes) -> bytes:
        """The event for the caller; empty for one that it did not ask for."""
        self._events += 1
        tokens = tokens_of(event)
        self._tokens = tokens or self._tokens
        if tokens and _NO_CHOICES in event and not self._usage:
            return b""
        event = event.replace(self._theirs, self._ours, 1)
        parts = (_PROMPT_TOKENS, _THOUGHTS)
        if not event.startswith(_DATA) or not any(part in event for part in parts):
            return event
        chunk = read_json(event.removeprefix(_DATA))
        if isinstance(chunk, dict):
            _complete_choices(chunk, self._drawn)
            _copy_thoughts(chunk, "delta")
        return _DATA + _dump(chunk)


def error_event(body: dict[str, object]) -> bytes:
    """An error inside a stream that has begun, and its end."""
    return b"".join(_DATA + part + _EVENT_END for part in (_dump(body), b"[DONE]"))


def _complete_choices(answer: dict[str, Any], drawn: Sampled) -> None:
    """Puts the prompt's tokens into every choice, and beside them how it was sampled."""
    tokens, choices = answer.get("prompt_token_ids"), answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if tokens is not None:
            choice["prompt_token_ids"] = tokens
        if choice.get("prompt_token_ids") is not None and not drawn.plain:
            choice[CHUNKS] = [drawn.chunk()]


def _copy_thoughts(answer: dict[str, Any], part: str) -> None:
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get(part) if isinstance(choice, dict) else None
        if isinstance(message, dict) and message.get("reasoning") is not None:
            message["reasoning_content"] = message["reasoning"]


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
