"""The last published state and commits, for other threads to read while the engine works."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from espalier.api.wire.commits import Commit, CommitPage
from espalier.api.wire.problem import Problem
from espalier.api.wire.trainer import TrainerState

# A page stays far below the operator's limit on an answer (2 MiB).
PAGE = 250


@dataclass(frozen=True)
class Snapshot:
    """An immutable view of the engine; ``state`` is None before the first assignment."""

    state: TrainerState | None
    commits: tuple[Commit, ...]
    problem: Problem | None
    warnings: tuple[Problem, ...] = ()


class CommitFeed:
    """A long-poll over the model's whole history, resumable by index."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = asyncio.Event()
        self._closed = False
        self.snapshot = Snapshot(None, (), None)

    def publish(self, snapshot: Snapshot) -> None:
        """Takes a new view, from any thread."""
        self._loop.call_soon_threadsafe(self._replace, snapshot)

    def close(self) -> None:
        """Answers all polls at once, because a shutdown waits for answers."""
        self._closed = True
        self._wake()

    async def page(self, after: int, wait_seconds: float) -> CommitPage:
        """Commits with an index above ``after``; waits for one, or for a change of problem."""
        deadline = self._loop.time() + wait_seconds
        problem = self.snapshot.problem
        while not (
            self._closed or len(self.snapshot.commits) > after or self.snapshot.problem != problem
        ):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                break
        commits = self.snapshot.commits[after : after + PAGE]
        return CommitPage(
            commits=list(commits),
            problem=self.snapshot.problem,
            warnings=list(self.snapshot.warnings),
        )

    def _replace(self, snapshot: Snapshot) -> None:
        news = (snapshot.commits, snapshot.problem) != (
            self.snapshot.commits,
            self.snapshot.problem,
        )
        self.snapshot = snapshot
        if news:
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
