"""Turns of a conversation with a tool: in text, or by calls of the tool in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.client.completion import Completion
from espalier.client.errors import InvalidRequestError
from espalier.loop.session import PromptTooLongError, Session

# Of a call that the model wrote; more is no sensible argument.
MOST_ARGUMENT_CHARACTERS = 16384


async def turn(session: Session, *messages: Mapping[str, Any] | str) -> Completion | None:
    """The model's next turn; None where the conversation fills the model's context.

    The rollout then ends as ``length``, with what it reached. A first prompt that does not fit is
    refused, because nothing was played.
    """
    try:
        return await session.say(*messages)
    except PromptTooLongError:
        pass
    except InvalidRequestError as refused:
        if not refused.is_too_long or not session.rollout.turns:
            raise
    session.stop("length")
    return None


def tool(
    name: str, description: str, parameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A tool in OpenAI's form, all of whose parameters are needed."""
    schema = {
        "type": "object",
        "properties": {key: dict(value) for key, value in parameters.items()},
        "required": list(parameters),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


def call(completion: Completion, names: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the first call that the model made; None where it is no such call."""
    for made in completion.tool_calls[:1]:
        function = made.get("function")
        if not isinstance(function, dict) or function.get("name") not in names:
            return None
        given = parsed(function.get("arguments"))
        return (str(function["name"]), given) if given is not None else None
    return None


def parsed(text: object) -> dict[str, Any] | None:
    """The JSON object in a text that a model wrote; None where it is none."""
    if not isinstance(text, str) or len(text) > MOST_ARGUMENT_CHARACTERS:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def answers(completion: Completion, content: str) -> list[dict[str, Any]]:
    """What the environment says after a turn: to each call that was made, or as the user.

    Chat templates want an answer to every call. Only the first was carried out.
    """
    calls = completion.tool_calls
    if not calls:
        return [{"role": "user", "content": content}]
    ids = [str(made.get("id", "")) for made in calls]
    first = {"role": "tool", "tool_call_id": ids[0], "content": content}
    ignored = "not carried out: make one call a turn"
    others = [{"role": "tool", "tool_call_id": one, "content": ignored} for one in ids[1:]]
    return [first, *others]
