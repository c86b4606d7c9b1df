"""What a rollout function works with: it samples turns of one rollout."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from espalier.client.completion import Completion
from espalier.client.errors import ConfigurationError, GatewayError
from espalier.client.gateway import Message
from espalier.client.rollout import Rollout
from espalier.client.sampling import Sampling


class Task(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> str:
        """Names the task among the others."""
        ...


T = TypeVar("T", bound=Task)


class Sampler(Protocol):
    """What a rollout asks for completions: a TrainingClient or a GatewayClient."""

    def sample(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> Awaitable[list[Completion]]:
        """Completions of a chat with their tokens and log-probs."""
        ...


class PromptTooLongError(GatewayError):
    """The prompt leaves no room for a completion within the model's length."""


@dataclass(frozen=True)
class Policy:
    """What a rollout samples, and how.

    Attributes:
        sampler: a TrainingClient, or a GatewayClient.
        checkpoint: name of the Checkpoint, ``base``, or empty for what the head serves.
        sampling: of every turn, unless the turn says otherwise.
        max_model_length: tokens of prompt and completion together; None: the server's.
    """

    sampler: Sampler
    checkpoint: str
    sampling: Sampling
    max_model_length: int | None = None


class Session:
    """What a rollout function works with: samples turns, and says what it is doing."""

    def __init__(
        self, policy: Policy, rollout: Rollout, seeds: Callable[[int], int | None] | None = None
    ) -> None:
        self._policy = policy
        # By the number of the request, counted from 0; without them the server draws its own.
        self._seeds = seeds
        self._requests = 0
        self.rollout = rollout
        self.doing = "starting"
        # In OpenAI's form; every later turn is sampled with them.
        self.tools: Sequence[Mapping[str, Any]] = ()
        self._chat: list[Message] = []
        # The last turn that was said: its tokens stand for the whole chat.
        self._said: Completion | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """Of the rollout; for people."""
        return self.rollout.metadata

    async def sample(self, messages: Sequence[Message], **overrides: Any) -> Completion:
        """One turn: it is recorded and will be trained on.

        Raises:
            PromptTooLongError: the last prompt already fills the model's length.
        """
        return await self._turn(messages, {}, overrides)

    async def say(self, *messages: Message | str, **overrides: Any) -> Completion:
        """One turn of a conversation that the session keeps; a string is a user's message.

        Earlier turns are continued by the very tokens that were sampled, which are not tokenised
        again, so that every prompt begins with the whole turn before it.

        Raises:
            PromptTooLongError: the last prompt already fills the model's length.
            InvalidRequestError: the chat template renders earlier turns in another way once others
                follow, and does not close them: keep the messages and use ``sample``.
        """
        if not messages:
            raise ConfigurationError("say needs a message that the model answers")
        new = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
        exact: dict[str, Any] = {}
        if self._said is not None:
            tokens = [*self._said.prompt_token_ids, *self._said.token_ids]
            exact = {"prompt_token_ids": tokens, "continuation_from": len(self._chat)}
        self._said = await self._turn([*self._chat, *new], exact, overrides)
        self._chat += [*new, _message_of(self._said)]
        return self._said

    async def _turn(
        self, messages: Sequence[Message], exact: dict[str, Any], overrides: dict[str, Any]
    ) -> Completion:
        sampling = self._policy.sampling.but(**overrides)
        self.rollout.prompt = [dict(message) for message in messages]
        tools = {"tools": [dict(tool) for tool in self.tools]} if self.tools else {}
        # Rollouts of one group begin alike: one replica's prefix cache serves them all.
        routed = {"prompt_cache_key": self.rollout.group_id}
        with self.phase("sampling"):
            (turn,) = await self._policy.sampler.sample(
                messages,
                max_tokens=self._room(sampling.max_tokens),
                checkpoint=self._policy.checkpoint,
                temperature=sampling.temperature,
                extra=sampling.body() | tools | exact | routed | self._seed(),
            )
        self.rollout.turns.append(turn)
        if turn.truncated:
            self.rollout.stop_reason = "length"
        return turn

    def _seed(self) -> dict[str, int]:
        number, self._requests = self._requests, self._requests + 1
        seed = self._seeds(number) if self._seeds is not None else None
        return {} if seed is None else {"seed": seed}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names what a timeout would interrupt: ``with session.phase("grading"):``."""
        before, self.doing = self.doing, name
        yield
        # Not in a finally: a failure keeps the name of the phase in which it happened.
        self.doing = before

    def stop(self, reason: str) -> None:
        """Why the rollout ends where it does; ``done`` if nothing is said."""
        self.rollout.stop_reason = reason

    def advantages(self, values: Any) -> None:
        """Precomputed advantages of the last turn, one per output token."""
        self.rollout.advantages[len(self.rollout.turns) - 1] = values

    def _room(self, max_tokens: int) -> int:
        limit = self._policy.max_model_length
        if limit is None or not self.rollout.turns:
            return max_tokens
        last = self.rollout.turns[-1]
        room = limit - len(last.prompt_token_ids) - len(last.token_ids)
        if room <= 0:
            self.rollout.stop_reason = "length"
            raise PromptTooLongError(
                f"the conversation has {limit - room} tokens and max_model_length is {limit}"
            )
        return min(max_tokens, room)


def _message_of(turn: Completion) -> Message:
    """A turn as the model's message: its tokens are what later turns are continued from."""
    message: dict[str, Any] = {"role": "assistant", "content": turn.text}
    if turn.tool_calls:
        message["tool_calls"] = list(turn.tool_calls)
    return message


# Plays one task and returns its reward.
RolloutFunction = Callable[[T, Session], Awaitable[float]]
