"""The evaluations of a run while it goes on: they start after steps, and are recorded."""

from __future__ import annotations

import asyncio

from espalier.api.run.evaluation import Evaluation
from espalier.api.run.overlong import Overlong
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import GatewayClient
from espalier.core.names import BASE
from espalier.runner.declared_taskset import declared_taskset
from espalier.runner.evaluation import Asked, answered
from espalier.runner.held_out_sets import HeldOutSets, OpenHeldOut
from espalier.runner.journal import Journal
from espalier.runner.task_source import OpenRewards


class Evaluations:
    """The evaluations of a run: they start after steps and end on their own.

    Args:
        client: of the model.
        run: namespace and name.
        open_held_out: the held-out tasks, given the run's taskset and the evaluation.
        open_rewards: what scores answers, given a run's spec and tasks.
        journal: where results and failures go.
    """

    def __init__(
        self,
        client: GatewayClient,
        run: tuple[str, str],
        open_held_out: OpenHeldOut,
        open_rewards: OpenRewards,
        journal: Journal,
    ) -> None:
        self._client = client
        self._run = run
        self._sets = HeldOutSets(open_held_out)
        self._open_rewards = open_rewards
        self._journal = journal
        self._running: set[asyncio.Task[None]] = set()
        # The last step that evaluations were started at; None: those of this step are to start.
        self._looked_at: int | None = None
        self._started = False
        self._failed: BaseException | None = None

    def start(self, spec: TrainingRunSpec, step: int, checkpoint: str) -> None:
        """Starts what is due at the checkpoint that the trainer stands on, once.

        Raises what ended an earlier evaluation; the next call starts those of its step again.
        """
        self._raise_failure()
        if self._looked_at == step:
            return
        first, self._started, self._looked_at = not self._started, True, step
        for evaluation in spec.evaluation if first else ():
            self._open_early(declared_taskset(spec), evaluation)
        for evaluation in spec.evaluation:
            if evaluation.due(step, spec.steps, started=first):
                running = asyncio.ensure_future(self._evaluate(spec, evaluation, step, checkpoint))
                self._running.add(running)
                running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        if not running.cancelled() and (error := running.exception()) is not None:
            self._failed = error

    def _raise_failure(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            self._looked_at, self._started = None, False
            raise failed

    async def finish(self) -> None:
        """Waits for those that are under way; raises what ended one."""
        await asyncio.gather(*self._running, return_exceptions=True)
        self._raise_failure()

    async def close(self) -> None:
        """Cancels those that are under way."""
        running = [*self._running]
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._sets.close()

    def _open_early(self, training: Taskset, evaluation: Evaluation) -> None:
        """Opens what a user's image plays: its host does not wait for the first evaluation."""
        if evaluation.taskset.user_image is None:
            return

        async def open_() -> None:
            held_out = await self._sets.of(training, evaluation)
            await held_out.tasks.ready()

        opening = asyncio.ensure_future(open_())
        self._running.add(opening)
        opening.add_done_callback(self._ended)

    async def _evaluate(
        self, spec: TrainingRunSpec, evaluation: Evaluation, step: int, checkpoint: str
    ) -> None:
        held_out = await self._sets.of(declared_taskset(spec), evaluation)
        asked = Asked.of(evaluation, spec)
        # The run's rewards, of the evaluation's tasks and lengths.
        sampling = spec.sampling.model_copy(update={"max_tokens": asked.max_tokens})
        judged = spec.model_copy(update={"taskset": evaluation.taskset, "sampling": sampling})
        if evaluation.taskset.played is not None:
            # Its environment pays it, and nothing that measures one completion.
            own = {"rewards": None, "length_penalty": None, "overlong": Overlong()}
            judged = judged.model_copy(update=own)
        rewards = held_out.tasks.rewards(judged, self._open_rewards)
        found = await answered(self._client, held_out, asked, rewards, checkpoint or BASE)
        if checkpoint:
            await self._client.record_evaluation(
                self._run[0], checkpoint, evaluation.name, found.figures, found.tasks
            )
        else:
            await self._client.record_base_evaluation(
                self._run, evaluation.name, found.figures, found.tasks
            )
        self._journal.event(
            "evaluated",
            evaluation=evaluation.name,
            step=step,
            checkpoint=checkpoint or BASE,
            tasks=found.tasks,
            scorer_errors=found.scorer_errors,
            prompts_too_long=found.too_long,
            metrics=found.figures,
        )
