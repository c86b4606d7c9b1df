"""Runs rollouts in groups, each within its time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

from espalier.client.batch import Batch
from espalier.client.call import Call
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
    """What a rollout asks for completions: a TrainingClient."""

    def sample(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[list[Completion]]:
        """Completions of a chat with their tokens and log-probs."""
        ...


class PromptTooLongError(GatewayError):
    """The prompt leaves no room for a completion within the model's length."""


class Session:
    """What a rollout function works with: samples turns, and says what it is doing."""

    def __init__(self, job: Job[Any], rollout: Rollout) -> None:
        self._job = job
        self.rollout = rollout
        self.doing = "starting"
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
        sampling = self._job.sampling.but(**overrides)
        self.rollout.prompt = [dict(message) for message in messages]
        with self.phase("sampling"):
            (turn,) = await self._job.sampler.sample(
                messages,
                max_tokens=self._room(sampling.max_tokens),
                checkpoint=self._job.checkpoint,
                temperature=sampling.temperature,
                extra=sampling.body() | exact,
            )
        self.rollout.turns.append(turn)
        if turn.truncated:
            self.rollout.stop_reason = "length"
        return turn

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
        limit = self._job.max_model_length
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


class Job(Generic[T]):
    """Rollouts that belong together: how they are sampled, and for how long they may take.

    Args:
        sampler: a TrainingClient.
        rollout: plays one task; its return value is the reward.
        group: rollouts of each task; their rewards are compared with each other.
        sampling: of every turn, unless the turn says otherwise.
        checkpoint: to sample; empty for what the head serves.
        max_concurrent: rollouts at a time.
        rollout_timeout: seconds for a rollout from start to grade; it ends as ``error`` with
            stop reason ``timeout`` and the phase named, and never holds up the others.
        max_model_length: tokens of prompt and completion together.
    """

    def __init__(
        self,
        sampler: Sampler,
        rollout: RolloutFunction[T],
        *,
        group: int = 1,
        sampling: Sampling | None = None,
        checkpoint: str = "",
        max_concurrent: int = 64,
        rollout_timeout: float | None = None,
        max_model_length: int | None = None,
    ) -> None:
        for name, value in (("group", group), ("max_concurrent", max_concurrent)):
            if value < 1:
                raise ConfigurationError(f"{name} is {value}: it must be at least 1")
        if rollout_timeout is not None and rollout_timeout <= 0:
            raise ConfigurationError(f"rollout_timeout is {rollout_timeout}: give seconds above 0")
        self.sampler = sampler
        self.sampling = sampling or Sampling()
        self.checkpoint = checkpoint
        self.max_model_length = max_model_length
        self._play = rollout
        self._group = group
        self._slots = max_concurrent
        self._timeout = rollout_timeout
        self.batches: list[Batch] = []

    async def run(self, tasks: Sequence[T], *, group: int | None = None) -> Batch:
        """A group of rollouts for each task. A failed rollout is returned, not raised."""
        slots = asyncio.Semaphore(self._slots)

        async def one(task: T, group_id: str, index: int) -> Rollout:
            rollout = Rollout(task_id=task.id, rollout_idx=index, group_id=group_id)
            async with slots:
                await self._rollout(task, rollout)
            return rollout

        async def all_of(task: T) -> list[Rollout]:
            group_id = uuid.uuid4().hex
            count = self._group if group is None else group
            return await asyncio.gather(*(one(task, group_id, i) for i in range(count)))

        batch = Batch(await asyncio.gather(*(all_of(task) for task in tasks)))
        self.batches.append(batch)
        return batch

    async def _rollout(self, task: T, rollout: Rollout) -> None:
        session = Session(self, rollout)
        try:
            async with _within(self._timeout):
                rollout.reward = await self._play(task, session)
        except _TooLongError:
            rollout.status, rollout.stop_reason = "error", "timeout"
            rollout.error = f"rollout timed out after {self._timeout:g} s during {session.doing}"
        except Exception as error:
            # One broken task must not take the batch with it; its group is left out and counted.
            rollout.status = "error"
            rollout.error = f"{type(error).__name__} during {session.doing}: {error}"
        else:
            rollout.stop_reason = rollout.stop_reason or "done"


class _TooLongError(Exception):
    """The rollout's own time is over, not one of its calls'."""


@asynccontextmanager
async def _within(seconds: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise _TooLongError from None
        raise
