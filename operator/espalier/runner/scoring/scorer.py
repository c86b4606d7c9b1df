"""Scores completions through a worker, which is started anew when it is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from espalier.api.run.taskset import Taskset
from espalier.rewards.failure import Failure
from espalier.runner.run_end import UserError, WaitError
from espalier.runner.scorer_spec import Gym, Mix, Module, Reference, Spec
from espalier.runner.scoring.process import COMMAND, Patience, Process, WorkerLostError
from espalier.runner.scoring.protocol import MEMORY_BYTES, Opening, Ready
from espalier.runner.scoring.scorers import EVALUATING
from espalier.runner.task_protocol import Score, Tasks

# At least two, so that an answer that hangs does not stop the others.
_FEWEST_CHILDREN, _MOST_CHILDREN = 2, 8
_ATTEMPTS = 2


def children() -> int:
    """How many score at once on this machine."""
    return min(max(_FEWEST_CHILDREN, os.cpu_count() or 1), _MOST_CHILDREN)


class Sandbox:
    """One worker and what it scores. It starts when it is first needed; ``close`` ends it.

    Args:
        opening: what scores, and its limits.
        command: starts the worker.
        patience: with it.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        command: Sequence[str] = COMMAND,
        patience: Patience | None = None,
    ) -> None:
        self._opening = opening
        self._command = command
        self._patience = patience or Patience()
        self._starting: asyncio.Task[Process] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the worker for good; a score that still waits for it starts no other one."""
        self._closed = True
        starting, self._starting = self._starting, None
        if starting is None:
            return
        starting.cancel()
        ended = (await asyncio.gather(starting, return_exceptions=True))[0]
        if isinstance(ended, Process):
            await ended.stop()

    async def ready(self) -> Ready:
        """What confines the worker; waits for it.

        Raises:
            WaitError: it did not start.
            UserError: answers are evaluated, and nothing here would confine that.
        """
        return (await self._process()).ready

    async def ask(self, reference: Reference, completion: str) -> Score:
        """The reward of a completion, or why there is none.

        Raises:
            WaitError, UserError: as ``ready`` does.
        """
        lost = ""
        for _ in range(_ATTEMPTS):
            process = await self._process()
            try:
                answer = await process.ask(reference, completion)
            except WorkerLostError as error:
                lost = str(error)
                await process.stop()
                continue
            return Score(answer.reward, answer.failure)
        return Score(None, Failure.of("Died", lost))

    async def _process(self) -> Process:
        while True:
            if self._closed:
                raise RuntimeError("the scorer is closed")
            starting = self._starting
            if starting is None or _is_over(starting):
                starting = self._starting = asyncio.ensure_future(self._start())
            try:
                # One start serves everybody who waits, whoever of them gives up.
                process = await asyncio.shield(starting)
            except WorkerLostError as error:
                raise WaitError("ScorerNotReady", self._patience.start, str(error)) from error
            if not process.lost:
                return process

    async def _start(self) -> Process:
        process = await Process.start(self._opening, self._command, self._patience)
        if evaluates(self._opening.scorer) and not process.ready.seccomp:
            await process.stop()
            raise _unconfined(self._opening.scorer)
        return process


class Scorer(Sandbox):
    """The taskset's own score.

    Args:
        spec: the time of a score.
        tasks: of that taskset.
        command, patience: as of a Sandbox.
        memory_bytes: that a child may take on top of the worker.
    """

    def __init__(
        self,
        spec: Taskset,
        tasks: Tasks,
        *,
        command: Sequence[str] = COMMAND,
        patience: Patience | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        opening = Opening(
            scorer=tasks.scorer,
            seconds=spec.score_timeout_seconds,
            memory_bytes=memory_bytes,
            children=children(),
        )
        super().__init__(opening, command=command, patience=patience)
        self._tasks = tasks

    async def score(self, index: int, completion: str) -> Score:
        """The reward of a completion of a task, as ``ask`` gives it."""
        return await self.ask(self._tasks.reference(index), completion)


def _is_over(starting: asyncio.Task[Process]) -> bool:
    """Whether its worker can give no answer any more, or never could."""
    if not starting.done():
        return False
    return starting.cancelled() or starting.exception() is not None or bool(starting.result().lost)


def evaluates(scorer: Spec) -> bool:
    """Whether answers may run as code when they are scored."""
    return isinstance(scorer, Module) or bool(_evaluating(scorer))


def _evaluating(scorer: Spec) -> list[str]:
    """The datasets whose scorer evaluates."""
    if isinstance(scorer, Mix):
        return [part.dataset for part in scorer.parts if part.dataset in EVALUATING]
    return [scorer.dataset] if isinstance(scorer, Gym) and scorer.dataset in EVALUATING else []


def _unconfined(scorer: Spec) -> UserError:
    if datasets := ", ".join(_evaluating(scorer)):
        field = "datasets" if isinstance(scorer, Mix) else "dataset"
        what = f"taskset.reasoningGym.{field}: {datasets} evaluates what the model writes as Python"
    else:
        what = "rewards: a python reward runs a module of a ConfigMap"
    return UserError(
        "ScoringUnconfined",
        f"{what}, and this kernel has no seccomp filters to confine that",
        "Use Linux on x86_64 or aarch64 with seccomp, or another dataset or reward",
    )
