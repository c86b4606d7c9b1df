"""What an environment is, and how one of its rollouts is played within its time."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Protocol, runtime_checkable

from espalier.environments.errors import RolloutFailedError
from espalier.environments.tasks import Task
from espalier.loop.session import Session


@runtime_checkable
class Environment(Protocol):
    """Numbered tasks of one source, and the function that plays them.

    The index runs from 0 to size - 1. Before ``ready`` has returned nothing else is asked.
    """

    @property
    def size(self) -> int:
        """Number of tasks."""
        ...

    @property
    def digest(self) -> str:
        """Names the tasks: another digest, other tasks (``digest``)."""
        ...

    @property
    def timeout_seconds(self) -> float | None:
        """Of one rollout; None where its parts are bounded each for itself."""
        ...

    async def ready(self) -> dict[str, Any]:
        """Opens the source; facts for the log. UserError names a field that is wrong."""
        ...

    async def close(self) -> None:
        """Lets go of what ``ready`` opened."""
        ...

    def task(self, index: int) -> Task:
        """The task; IndexError outside of the range."""
        ...

    async def rollout(self, task: Task, session: Session) -> float | None:
        """Plays the task and gives its reward; RolloutFailedError where it came to nothing."""
        ...


async def play(environment: Environment, task: Task, session: Session) -> float:
    """The reward of one rollout, which is finite.

    Raises:
        RolloutFailedError: it took too long, raised, or gave no finite reward.
        GatewayError: the gateway refused a turn.
    """
    seconds = environment.timeout_seconds
    try:
        async with asyncio.timeout(seconds) as limit:
            reward = await environment.rollout(task, session)
    except TimeoutError as error:
        if not limit.expired():
            raise RolloutFailedError("Timeout", f"during {session.doing}: {error}") from error
        detail = f"the rollout took longer than {seconds or 0:g} s, during {session.doing}"
        raise RolloutFailedError("Timeout", detail) from error
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        raise RolloutFailedError("Malformed", f"its reward is {reward!r:.80}, not a number")
    if not math.isfinite(reward):
        raise RolloutFailedError("NotFinite", f"its reward is {reward}")
    return float(reward)
