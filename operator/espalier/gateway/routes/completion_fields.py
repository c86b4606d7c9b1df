"""Fields of a completion that OpenAI's API does not know: which checkpoint, which exact tokens.

``checkpoint`` samples that checkpoint instead of the head. ``prompt_token_ids`` with
``continuation_from`` (a number of messages) continues exactly these tokens, which stand for the
first ``continuation_from`` messages; only the messages after them are rendered. ``renderer_name``
names what turns messages into tokens; only the model's own chat template is accepted. Requests with
one ``prompt_cache_key``, which is OpenAI's, go to one rollout. Pure.
"""

from __future__ import annotations

from typing import Any

from espalier.core.continuation import MESSAGES, TOKENS, misfit
from espalier.gateway.problems import RefusalError

CHECKPOINT = "checkpoint"
RENDERER = "renderer_name"
CHAT_TEMPLATE = "chat_template"
CHUNKS = "prompt_chunks"
CACHE_KEY = "prompt_cache_key"
CACHE_KEY_CHARACTERS = 256
# Fields for other configurations of vLLM: several servers for one request, plugins. ``priority`` is
# the sampler's to set (``espalier.sampler.turns``).
# ``user`` is a caller's name for its user, which OpenAI's service reads and nothing here does.
_LEFT_OUT = (
    "user",
    "watermarking",
    "priority",
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
    "routed_experts_prompt_start",
    "return_token_offsets",
)
# Set for a whole server, not for a request.
_LEFT_OUT_OF_STRUCTURE = (
    "disable_any_whitespace",
    "disable_additional_properties",
    "whitespace_pattern",
)
# Types of content parts that are text, in the words of OpenAI's API and of vLLM.
_TEXT = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})


def reference(body: dict[str, Any]) -> str:
    """The model with its checkpoint, as ``slug@checkpoint``; takes the field out of the body."""
    model: str = body["model"]
    checkpoint = body.pop(CHECKPOINT, None)
    if checkpoint is None:
        return model
    if not isinstance(checkpoint, str) or not checkpoint:
        raise _bad(CHECKPOINT, "is not the name of a checkpoint", "Leave it out to sample the head")
    slug, _, named = model.partition("@")
    if named not in ("", checkpoint):
        raise _bad(
            CHECKPOINT, f"is {checkpoint}, and model names {named}", "Name the checkpoint once"
        )
    return f"{slug}@{checkpoint.removeprefix(f'{slug}@')}"


def cache_key(body: dict[str, Any]) -> str:
    """What names the requests that begin alike; takes the field out of the body: 400."""
    key = body.pop(CACHE_KEY, None)
    if key is None:
        return ""
    if not isinstance(key, str) or not 0 < len(key) <= CACHE_KEY_CHARACTERS:
        raise _bad(
            CACHE_KEY,
            f"is no text of 1 to {CACHE_KEY_CHARACTERS} characters",
            "Name alike what begins alike, or leave it out",
        )
    return key


def check_rendering(body: dict[str, Any]) -> None:
    """Refuses what the model's chat template cannot render; takes ``renderer_name`` out: 400."""
    renderer = body.pop(RENDERER, None)
    if renderer not in (None, CHAT_TEMPLATE):
        raise _bad(
            RENDERER,
            f"is {renderer!r}, and messages are rendered by the model's own chat template",
            f"Leave it out or set {CHAT_TEMPLATE}; tokens of another one go to /v1/completions "
            "as prompt",
        )
    if body.get(CHUNKS) is not None:
        raise _bad(CHUNKS, "is not taken: only text is sampled and trained", f"Send {TOKENS}")
    for number, message in enumerate(_list(body.get("messages"))):
        content = message.get("content") if isinstance(message, dict) else None
        for place, part in enumerate(_list(content)):
            if isinstance(part, dict) and (media := _media(part)):
                raise _bad(
                    f"messages[{number}].content[{place}]",
                    f"{media}: only text is sampled and trained",
                    "Send parts of type text",
                )


def _media(part: dict[str, Any]) -> str:
    """What of a content part is no text.

    vLLM goes by the type alone only where there is one and no ``uuid``: else by other fields, of
    which it would fetch a URL.
    """
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXT:
        return f"is of type {str(kind)[:64]}"
    return "has a uuid" if part.get("uuid") is not None else ""


def check_honoured(body: dict[str, Any]) -> None:
    """Refuses fields that vLLM accepts and silently ignores in our configuration: 400."""
    count = body.get("n") or 1
    if body.get("best_of") not in (None, count):
        raise _bad("best_of", f"is not taken beside n {count}", "Ask for n and choose yourself")
    for name in _LEFT_OUT:
        if body.get(name):
            raise _bad(name, "has no effect on these servers", "Leave it out")
    if body.get("use_beam_search") and body.get("prompt_logprobs") is not None:
        raise _bad("prompt_logprobs", "is not computed by beam search", "Leave out either")
    structured = body.get("structured_outputs")
    if not (structured is None or isinstance(structured, dict)):
        raise _bad("structured_outputs", "is no object", 'Send one such as {"regex": "[0-9]+"}')
    for name in _LEFT_OUT_OF_STRUCTURE:
        if isinstance(structured, dict) and structured.get(name):
            raise _bad(f"structured_outputs.{name}", "has no effect on these servers", "Leave out")


def check_continuation(body: dict[str, Any]) -> None:
    """Refuses a continuation that a rollout could not take: 400 with the field."""
    if "messages" not in body or (TOKENS not in body and MESSAGES not in body):
        return
    messages = len(body["messages"]) if isinstance(body["messages"], list) else 0
    found = misfit(body.get(TOKENS), body.get(MESSAGES), messages)
    if found is not None:
        raise _bad(*found)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _bad(field: str, detail: str, remedy: str) -> RefusalError:
    return RefusalError(400, "InvalidRequest", f"{field} {detail}", remedy)
