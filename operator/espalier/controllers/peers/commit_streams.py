"""Long-polls trainers for commits, and queues them for the reconciler of commits.

Nothing here outlives the process: a new one reads every commit again and finds most of them known.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from espalier.api.wire.commits import Commit, Tokens
from espalier.api.wire.problem import Problem
from espalier.backoff import Backoff
from espalier.controllers.peers.peer import Peer
from espalier.controllers.peers.trainer_client import Trainer, TrainerError
from espalier.core.pods.pods import Pod
from espalier.telemetry import spans

logger = logging.getLogger(__name__)

# Not a kind of the API: the pending commits of one model.
COMMITS = "Commits"
WAIT_SECONDS = 25
RETRY = Backoff(first=0.4, cap=5.0, jitter=0.5)
# A trainer that answers at once without a commit is not asked more often than this.
PAUSE_SECONDS = 0.5
# Commits that may wait for their Checkpoints; more are read when these have been dealt with.
PENDING_MOST = 256

ModelId = tuple[str, str]


@dataclass
class Ledger:
    """The pending commits of one trainer, and the problems that it reports.

    ``read``: the trainer has told all that it had; ``held``: the first pending one has to wait.
    By run identity ``counted`` is the highest step, and ``tokens`` are those up to it; ``warnings``
    are None until it was heard.
    """

    pending: list[Commit] = field(default_factory=list)
    read: bool = False
    held: bool = False
    counted: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, Tokens] = field(default_factory=dict)
    problem: Problem | None = None
    warnings: list[Problem] | None = None

    @property
    def caught_up(self) -> bool:
        """Whether the tree has what the trainer had when it was found."""
        return self.read and (self.held or not self.pending)


class CommitStreams:
    """One long-poll task per model with a ready trainer."""

    def __init__(self, source: Trainer, wake: Callable[[str, str], None]) -> None:
        self._source = source
        self._wake = wake
        self._ledgers: dict[ModelId, Ledger] = {}
        self._tasks: dict[ModelId, tuple[str, asyncio.Task[None]]] = {}

    def ledger(self, namespace: str, model: str) -> Ledger:
        """The ledger of a model."""
        return self._ledgers.setdefault((namespace, model), Ledger())

    def follow(self, namespace: str, model: str, trainer: Pod | None) -> None:
        """Follow the commits of this trainer alone; None if no trainer is ready."""
        following = self._tasks.get((namespace, model))
        if following is not None:
            if trainer is not None and following[0] == trainer.instance and not following[1].done():
                return
            following[1].cancel()
            del self._tasks[namespace, model]
        ledger = self.ledger(namespace, model)
        # Of the next one too, which may be ready before it is followed.
        ledger.read = False
        if trainer is None:
            ledger.problem = ledger.warnings = None
            return
        polls = self._follow(namespace, model, trainer)
        task = asyncio.create_task(polls, context=spans.apart())
        self._tasks[namespace, model] = (trainer.instance, task)

    def rewind(self, namespace: str, model: str) -> None:
        """Read all of a model's commits again, once ``follow`` is next called."""
        following = self._tasks.pop((namespace, model), None)
        if following is not None:
            following[1].cancel()

    def forget(self, namespace: str, model: str) -> None:
        """The model is gone."""
        self.follow(namespace, model, None)
        self._ledgers.pop((namespace, model), None)

    async def close(self) -> None:
        """End all tasks."""
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, namespace: str, model: str, trainer: Pod) -> None:
        peer = Peer.of(namespace, model, trainer)
        after, wait, failures = 0, 0, 0
        clock = asyncio.get_running_loop().time
        while True:
            ledger = self.ledger(namespace, model)
            if len(ledger.pending) >= PENDING_MOST:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            started = clock()
            try:
                page = await self._source.commits(peer, after, wait)
            except TrainerError as error:
                failures += 1
                logger.warning("commits of %s/%s: %s", namespace, model, error)
                await asyncio.sleep(RETRY.delay(failures, random.random()))
                continue
            failures = 0
            report = (page.problem, page.warnings)
            last = not page.commits and not ledger.read
            changed = last or bool(page.commits) or report != (ledger.problem, ledger.warnings)
            ledger.read = ledger.read or last
            ledger.pending += page.commits
            ledger.problem, ledger.warnings = report
            after = max([after, *(commit.index for commit in page.commits)])
            if changed:
                self._wake(namespace, model)
            elif wait and clock() - started < PAUSE_SECONDS:
                await asyncio.sleep(PAUSE_SECONDS)
            # All existing commits have been read; from now on wait for more.
            wait = wait if page.commits else WAIT_SECONDS
