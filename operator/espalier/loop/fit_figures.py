"""What the batches of a fit say of a checkpoint, and why they teach nothing. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.metric_names import STEP_REWARD
from espalier.api.wire.trainer import TrainerState
from espalier.core.names import parse_checkpoint_name
from espalier.loop.batch import Batch
from espalier.loop.evaluation import figures


def own(batch: Batch, state: TrainerState) -> dict[str, float]:
    """What the batch says of the checkpoint that was sampled, if that is the model's own."""
    if parse_checkpoint_name(state.model, state.checkpoint) is None:
        return {}
    return batch.measured().get(state.checkpoint, {})


def passed(batch: Batch, ks: Sequence[int]) -> dict[str, float]:
    """Mean reward with its interval and pass@k, over the tasks whose rollouts were all graded."""
    by_task: dict[str, list[float]] = {}
    for group in batch.whole:
        for rollout in group:
            by_task.setdefault(rollout.task_id, []).append(rollout.reward or 0.0)
    return figures(list(by_task.values()), ks) if by_task else {}


def uninformative(batch: Batch, rounds: int) -> str:
    """Why no group of some rounds can be learnt from, with the remedy."""
    seen = batch.metrics()
    failed = next((r.error for group in batch.groups for r in group if r.error), "")
    if failed and not batch.whole:
        return f"in {rounds} rounds every group had a failed rollout, the first: {failed}"
    mean = seen.get(STEP_REWARD, 0.0)
    return (
        f"in {rounds} rounds every group had equal rewards (mean {mean:.3g}): "
        "choose tasks that the model solves sometimes, or raise group"
    )
