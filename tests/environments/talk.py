"""A model whose words a test writes: a real session over it, without a gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from espalier.client.completion import Completion
from espalier.client.rollout import Rollout
from espalier.client.sampling import Sampling
from espalier.environments.environment import Environment, play
from espalier.loop.session import Policy, Session

# What the model says to a chat: a text, or the arguments of a call of a tool.
Says = Callable[[Sequence[Mapping[str, Any]]], str | tuple[str, dict[str, Any]]]


class Model:
    """Answers by a function; ``heard`` are the requests, with what was asked beside the chat."""

    def __init__(self, says: Says) -> None:
        self._says = says
        self.heard: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []

    async def sample(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        self.heard.append(([dict(message) for message in messages], dict(extra or {})))
        said = self._says(messages)
        text = said if isinstance(said, str) else ""
        calls = () if isinstance(said, str) else (_call(*said, len(self.heard)),)
        tokens = tuple(text.encode()) or (0,)
        prompt = tuple(json.dumps(messages[-1]).encode())
        return [Completion(text, prompt, tokens, (-0.5,) * len(tokens), "stop", tool_calls=calls)]


def _call(name: str, arguments: dict[str, Any], number: int) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call-{number}", "type": "function", "function": function}


def session(model: Model, task: str = "task", rollout: int = 0) -> Session:
    """A session of one rollout with that model."""
    return Session(Policy(model, "base", Sampling(8)), Rollout(task, rollout, "group"))


async def played(
    environment: Environment, model: Model, index: int = 0, rollout: int = 0
) -> tuple[float, Session]:
    """The reward of one rollout, and its session."""
    task = environment.task(index)
    talk = session(model, task.id, rollout)
    return await play(environment, task, talk), talk
