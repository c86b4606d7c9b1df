"""The two fields of a chat that continues exact tokens: what gateway and sampler ask of them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

TOKENS = "prompt_token_ids"
MESSAGES = "continuation_from"


class Misfit(NamedTuple):
    """A field that cannot be taken: its name, what is wrong, and what to send instead."""

    field: str
    detail: str
    remedy: str


def misfit(tokens: Any, count: Any, messages: int) -> Misfit | None:
    """What of a continuation cannot be taken; None if all can.

    Args:
        tokens: the field ``prompt_token_ids`` as it was sent.
        count: the field ``continuation_from`` as it was sent.
        messages: how many messages the chat has.
    """
    if not isinstance(tokens, list) or not tokens or not all(_whole(token) for token in tokens):
        return Misfit(
            TOKENS,
            "is not a list of token ids",
            "Send prompt and output tokens of the last turn, or leave out continuation_from",
        )
    if not _whole(count) or not 0 < count <= messages:
        return Misfit(
            MESSAGES,
            f"is {count!r}, and there are {messages} messages",
            "Send how many of the messages the tokens stand for",
        )
    if count == messages:
        return Misfit(
            MESSAGES,
            "leaves no message to continue with",
            "Add the messages that followed the last turn",
        )
    return None


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
