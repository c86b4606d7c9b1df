"""What the command line does through the gateway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from espalier.api.run.taskset import Taskset
from espalier.cli.options import Access
from espalier.cli.reward_surroundings import surroundings
from espalier.client import GatewayClient, Patience
from espalier.core.names import parse_checkpoint_name
from espalier.runner.evaluation import Asked, answered
from espalier.runner.heldout import HeldOut
from espalier.runner.open_rewards import open_rewards
from espalier.runner.run_end import UserError

PATIENCE = Patience(deadline=60.0)


@dataclass(frozen=True)
class Evaluated:
    """What a checkpoint made of held-out tasks. ``model`` is what was asked.

    ``size`` counts the tasks that were scored, ``scorer_errors`` answers whose scorer failed: under
    the run's ``taskset.onError: Zero`` they count as 0, else their tasks are left out. ``recorded``
    is the Checkpoint whose status has the figures; empty where they were not recorded. ``too_long``
    tasks were left out for their prompts, as the run's ``limits`` say.
    """

    run: str
    model: str
    seed: int
    size: int
    mean_reward: float
    metrics: dict[str, float]
    scorer_errors: int
    recorded: str
    too_long: int = 0

    def wire(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Wanted:
    """How to evaluate: answers to each task, their temperature, and the name to record it by."""

    seed: int
    group_size: int = 1
    temperature: float = 0.0
    record: str = ""


async def ask(
    access: Access, model: str, checkpoint: str, questions: Sequence[str], max_tokens: int
) -> list[str]:
    """Greedy answers, in the order of the questions.

    Asked one by one, so that two checkpoints are compared under the same batching.
    """
    async with GatewayClient(access.url, model, access.token, patience=PATIENCE) as client:
        return [
            (
                await client.sample(
                    [{"role": "user", "content": question}],
                    checkpoint=checkpoint,
                    temperature=0.0,
                    max_tokens=max_tokens,
                )
            )[0].text
            for question in questions
        ]


async def evaluate(
    access: Access,
    run: tuple[str, str],
    checkpoint: str,
    *,
    wanted: Wanted,
    held_out: Callable[[Taskset], HeldOut],
    module: Callable[[str, str], str],
) -> Evaluated:
    """Asks a run's model held-out tasks of the run's kind.

    Args:
        access: to the gateway.
        run: namespace and name.
        checkpoint: whose answers count; empty for what the head serves.
        wanted: how, and whether it is recorded.
        held_out: the tasks, given the run's taskset.
        module: the text of a reward's module by ConfigMap and key.

    Raises:
        UserError: there are no such tasks, they cannot be scored, or nothing can be recorded.
        WaitError: the scorer's process did not start.
        GatewayError: the gateway refused or did not answer.
    """
    namespace, name = run
    async with GatewayClient(access.url, "", access.token, patience=PATIENCE) as reader:
        view = await reader.run(namespace, name)
    if view.spec.taskset is None:
        raise UserError("TasksetInvalid", f"run {name} has no taskset", "Name a run that has one")
    sampling, size = view.spec.sampling, wanted.group_size
    ks = sorted({1, size})
    asked = Asked(size, wanted.temperature, sampling.max_tokens, ks, sampling, view.spec.limits)
    slug = f"{namespace}/{view.model}"
    async with GatewayClient(access.url, slug, access.token, patience=PATIENCE) as client:
        tasks = held_out(view.spec.taskset)
        around = surroundings(access, namespace, module)
        rewards = tasks.tasks.rewards(view.spec, partial(open_rewards, around=around))
        found = await answered(client, tasks, asked, rewards, checkpoint)
        recorded = ""
        if wanted.record:
            recorded = _own(found.checkpoint, view.model)
            await client.record_evaluation(
                namespace, recorded, wanted.record, found.figures, found.tasks
            )
    return Evaluated(
        run=name,
        model=f"{view.model}@{checkpoint}" if checkpoint else view.model,
        seed=wanted.seed,
        size=found.tasks,
        mean_reward=found.figures["mean_reward"],
        metrics=found.figures,
        scorer_errors=found.scorer_errors,
        recorded=recorded,
        too_long=found.too_long,
    )


def _own(checkpoint: str, model: str) -> str:
    """The checkpoint, if it is one of the model's Checkpoints."""
    if parse_checkpoint_name(model, checkpoint) is None:
        what = checkpoint or "not one checkpoint, because the head moved meanwhile"
        raise UserError(
            "NothingToRecord",
            f"what answered is {what}, and no Checkpoint of {model}",
            "Name one with --checkpoint, or leave out --record",
        )
    return checkpoint
