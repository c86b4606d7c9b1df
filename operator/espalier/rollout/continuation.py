"""Chats that continue exact tokens: what was sampled is never tokenised again.

A client of several turns sends the tokens of its last turn (``prompt_token_ids``) and how many
messages they stand for (``continuation_from``). Rendering those messages again could give other
tokens than the ones that were sampled; so only what the chat template adds after them is rendered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

# A turn is closed by its end token and at most a few of white space.
MOST_CLOSING = 8
ERROR = (
    "continuation_from: the chat template renders the earlier messages in another way once others "
    "follow, so the tokens cannot be continued exactly; leave prompt_token_ids out"
)

Render = Callable[[Any], Awaitable[Any]]


class ContinuationError(ValueError):
    """The chat template does not let the tokens be continued; vLLM answers it with a 400."""


def continued(
    exact: Sequence[int], earlier: Sequence[int], whole: Sequence[int], ends: Collection[int]
) -> list[int]:
    """The tokens of a chat whose earlier turns are given exactly.

    Args:
        exact: tokens of the earlier messages as they were sampled, up to the last output token.
        earlier: tokens of the same messages as the template renders them.
        whole: tokens of all messages, with the prompt for the next turn.
        ends: tokens that end a turn.

    Returns:
        ``exact``, what the template closes a turn with, and what it adds for later messages.

    Raises:
        ContinuationError: the rendering of the earlier messages is no prefix of the whole.
    """
    if list(whole[: len(earlier)]) != list(earlier):
        raise ContinuationError(ERROR)
    closing = _closing(earlier, ends)
    if exact and closing and exact[-1] in ends:
        closing = closing[1:]
    return [*exact, *closing, *whole[len(earlier) :]]


def _closing(earlier: Sequence[int], ends: Collection[int]) -> list[int]:
    """The end token of the last turn and what the template puts behind it."""
    tail = list(earlier[-MOST_CLOSING:])
    found = [index for index, token in enumerate(tail) if token in ends]
    return tail[found[-1] :] if found else []


def install(serving: Any) -> None:
    """Makes vLLM's chat route take the two fields; ``serving`` is its OpenAIServingChat."""
    render: Render = serving.render_chat_request
    tokenizer = serving.renderer.tokenizer
    ends = {tokenizer.eos_token_id} if tokenizer is not None else set()
    ends |= set(_generation_ends(serving.model_config))

    async def render_exactly(request: Any) -> Any:
        given = request.model_extra or {}
        exact, count = given.get("prompt_token_ids"), given.get("continuation_from")
        rendered = await render(request)
        if exact is None or count is None or not isinstance(rendered, tuple):
            return rendered
        before = request.model_copy(
            update={"messages": request.messages[:count], "add_generation_prompt": False}
        )
        earlier = await render(before)
        if not isinstance(earlier, tuple):
            return earlier
        conversation, (prompt,) = rendered
        tokens = continued(
            exact, earlier[1][0]["prompt_token_ids"], prompt["prompt_token_ids"], ends
        )
        kept = {name: value for name, value in prompt.items() if name != "prompt"}
        return conversation, [{**kept, "prompt_token_ids": tokens}]

    serving.render_chat_request = render_exactly


def _generation_ends(model_config: Any) -> list[int]:
    """End tokens that the model's own generation_config.json lists beside the tokenizer's."""
    found = model_config.try_get_generation_config().get("eos_token_id")
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [int(found)]
