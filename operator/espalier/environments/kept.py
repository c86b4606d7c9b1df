"""An environment that stays open between those who play it, such as evaluations of many steps."""

from __future__ import annotations

import asyncio
from typing import Any

from espalier.environments.environment import Environment
from espalier.environments.tasks import Task
from espalier.loop.session import Session


class Kept:
    """Opened by the first ``ready``, shared by all, and closed by ``end`` alone.

    Where opening fails, the next ``ready`` tries again.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._opening = asyncio.Lock()
        self._facts: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """See ``Environment``."""
        return self._environment.size

    @property
    def digest(self) -> str:
        """See ``Environment``."""
        return self._environment.digest

    @property
    def timeout_seconds(self) -> float | None:
        """See ``Environment``."""
        return self._environment.timeout_seconds

    async def ready(self) -> dict[str, Any]:
        """Opens it, if nobody has."""
        async with self._opening:
            if self._facts is None:
                try:
                    self._facts = await self._environment.ready()
                except BaseException:
                    await self._environment.close()
                    raise
            return self._facts

    async def close(self) -> None:
        """Others may play it still."""

    async def end(self) -> None:
        """Lets go of it."""
        self._facts = None
        await self._environment.close()

    def task(self, index: int) -> Task:
        """See ``Environment``."""
        return self._environment.task(index)

    async def rollout(self, task: Task, session: Session) -> float | None:
        """See ``Environment``."""
        return await self._environment.rollout(task, session)
