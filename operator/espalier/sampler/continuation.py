"""Chats that continue exact tokens: what was sampled is never tokenised again.

A client of several turns sends the tokens of its last turn (``prompt_token_ids``) and how many
messages they stand for (``continuation_from``). Rendering those messages again could give other
tokens than the ones that were sampled; so only what the chat template adds after them is rendered.

Some templates render a turn in another way once others follow: Qwen3's drops what was thought. What
such a template adds is what two renderings have in common at their end that differ in the last
given turn alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from espalier.core.continuation import MESSAGES, TOKENS, misfit

# Of the request, beside vLLM's own.
FIELDS = (TOKENS, MESSAGES)
# A turn is closed by its end token and at most a few of white space.
MOST_CLOSING = 8
# Contents for the last given turn; their last tokens differ.
PLACEHOLDERS = ("0", "1")
ERROR = (
    "continuation_from: the chat template renders the earlier messages in another way once others "
    "follow, and does not close a turn with an end token, so the tokens cannot be continued "
    "exactly; leave prompt_token_ids out"
)

Render = Callable[[Any], Awaitable[Any]]


class ContinuationError(ValueError):
    """The tokens cannot be continued with this chat template; vLLM answers 400."""


def continued(
    exact: Sequence[int], earlier: Sequence[int], whole: Sequence[int], ends: Collection[int]
) -> list[int] | None:
    """The tokens of a chat whose earlier turns are given exactly.

    Args:
        exact: tokens of the earlier messages as they were sampled, up to the last output token.
        earlier: tokens of the same messages as the template renders them.
        whole: tokens of all messages, with the prompt for the next turn.
        ends: tokens that end a turn.

    Returns:
        ``exact``, what the template closes a turn with, and what it adds for later messages. None
        where the rendering of the earlier messages is not a prefix of the whole.
    """
    if list(whole[: len(earlier)]) != list(earlier):
        return None
    return _joined(exact, [*_closing(earlier, ends), *whole[len(earlier) :]], ends)


def continued_behind(
    exact: Sequence[int],
    renderings: tuple[Sequence[int], Sequence[int]],
    whole: Sequence[int],
    ends: Collection[int],
) -> list[int]:
    """The same for a template that rewrites earlier turns.

    Args:
        exact: as in ``continued``.
        renderings: of all messages with each of ``PLACEHOLDERS`` in place of the last given turn.
        whole: as in ``continued``.
        ends: as in ``continued``.

    Raises:
        ContinuationError: what they have in common does not begin by closing the turn.
    """
    added = _common_end(*renderings)
    if not added or added[0] not in ends or list(whole[-len(added) :]) != added:
        raise ContinuationError(ERROR)
    return _joined(exact, added, ends)


def _joined(exact: Sequence[int], added: Sequence[int], ends: Collection[int]) -> list[int]:
    """Both, with one end token between them where each has its own."""
    twice = exact and added and exact[-1] in ends and added[0] in ends
    return [*exact, *(added[1:] if twice else added)]


def _common_end(one: Sequence[int], other: Sequence[int]) -> list[int]:
    length = 0
    while length < min(len(one), len(other)) and one[-length - 1] == other[-length - 1]:
        length += 1
    return list(one[len(one) - length :])


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

    async def tokens_of(request: Any) -> Any:
        """Tokens of a rendering, or vLLM's refusal."""
        rendered = await render(request)
        return rendered[1][0]["prompt_token_ids"] if isinstance(rendered, tuple) else rendered

    async def render_exactly(request: Any) -> Any:
        given: dict[str, Any] = request.model_extra or {}
        exact: Any = given.get(TOKENS)
        count: Any = given.get(MESSAGES)
        if exact is None and count is None:
            return await render(request)
        if (wrong := misfit(exact, count, len(request.messages))) is not None:
            message = f"{wrong.field} {wrong.detail}: {wrong.remedy}"
            return serving.create_error_response(message, param=wrong.field)
        rendered = await render(request)
        if not isinstance(rendered, tuple):
            return rendered
        conversation, (prompt,) = rendered
        whole = prompt["prompt_token_ids"]
        before = {"messages": request.messages[:count], "add_generation_prompt": False}
        earlier = await tokens_of(request.model_copy(update=before))
        if not isinstance(earlier, list):
            return earlier
        tokens = continued(exact, earlier, whole, ends)
        if tokens is None:
            renderings = [await tokens_of(_replaced(request, count, p)) for p in PLACEHOLDERS]
            for refused in (found for found in renderings if not isinstance(found, list)):
                return refused
            tokens = continued_behind(exact, (renderings[0], renderings[1]), whole, ends)
        kept = {name: value for name, value in prompt.items() if name != "prompt"}
        return conversation, [{**kept, "prompt_token_ids": tokens}]

    serving.render_chat_request = render_exactly


def _replaced(request: Any, count: int, content: str) -> Any:
    """The request with a plain text in place of the last given turn, its tool calls included."""
    turn = {"role": request.messages[count - 1]["role"], "content": content}
    messages = [*request.messages[: count - 1], turn, *request.messages[count:]]
    return request.model_copy(update={"messages": messages})


def _generation_ends(model_config: Any) -> list[int]:
    """End tokens that the model's own generation_config.json lists beside the tokenizer's."""
    found = model_config.try_get_generation_config().get("eos_token_id")
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [int(found)]
