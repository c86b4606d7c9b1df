"""The request for a completion: read once, checked, and kept as text.

Parsed JSON takes many times its text, and a rollout's answer takes minutes. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from espalier.api.sampled import Sampled, sampled
from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.completion_fields import (
    cache_key,
    check_continuation,
    check_honoured,
    check_rendering,
    reference,
)

# A turn of a trace needs these fields, even if its client does not read them.
_KEPT_WITH = {"return_token_ids": True, "logprobs": True}


@dataclass(frozen=True)
class Asked:
    """What one request asks for.

    Attributes:
        model: the name as the caller wrote it; answers carry it.
        reference: ``slug@checkpoint``.
        recordable: whether its answer can be a turn of a trace.
        sampled: how the rollout will sample.
        cache_key: requests with one key go to one rollout; empty: to any.
        reads_usage: whether the caller wants the last event of its stream, which counts tokens.
    """

    model: str
    reference: str
    recordable: bool
    sampled: Sampled
    cache_key: str
    reads_usage: bool
    _rest: bytes
    _replaceable: bytes

    def text(self, adapter: str, *, recorded: bool) -> bytes:
        """The body for a rollout, with the adapter's name and the fields that a trace keeps."""
        own = to_json(_KEPT_WITH) if recorded else self._replaceable
        fields = [part[1:-1] for part in (to_json({"model": adapter}), own, self._rest)]
        return b"{" + b",".join(filter(None, fields)) + b"}"


def read_asked(body: dict[str, Any]) -> Asked:
    """Reads the body; RefusalError 400 if no rollout could answer it."""
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise RefusalError(
            400,
            "ModelMissing",
            "field model is missing or not text",
            "Set model to a slug, slug@checkpoint or slug@base",
        )
    named = reference(body)
    check_rendering(body)
    check_honoured(body)
    check_continuation(body)
    key = cache_key(body)
    reads_usage = _count_tokens(body)
    model = body.pop("model")
    replaceable = {name: body.pop(name) for name in _KEPT_WITH if name in body}
    return Asked(
        model=model,
        reference=named,
        recordable=_recordable(body),
        sampled=sampled(body),
        cache_key=key,
        reads_usage=reads_usage,
        _rest=to_json(body, inf_nan_mode="constants"),
        _replaceable=to_json(replaceable, inf_nan_mode="constants"),
    )


def _count_tokens(body: dict[str, Any]) -> bool:
    """Has a stream end in its usage, by which quotas are counted; whether the caller asked for it.

    Options that are none are left for the rollout to refuse.
    """
    options = body.get("stream_options")
    if body.get("stream") is not True or not (options is None or isinstance(options, dict)):
        return True
    options = options or {}
    body["stream_options"] = {**options, "include_usage": True}
    return bool(options.get("include_usage"))


def _recordable(body: dict[str, Any]) -> bool:
    """Whether the answer can be a turn: the only answer to a chat, and not streamed."""
    several = body.get("n") not in (None, 1)
    return "messages" in body and not body.get("stream") and not several
