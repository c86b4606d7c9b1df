"""The content of a checkpoint: weights in a common format, Adam's state, and its origin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.model.adapter import Adapter
from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.commits import Commit
from espalier.api.wire.step import TasksetUsed
from espalier.core.names import checkpoint_name
from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.compute.interface import Compute
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError, Stored, Verified
from espalier.trainer.volume.command_log import Key
from espalier.unchanged import end_if_changed

STATE_FILE = "state.json"
BATCH_FILE = "batch.json"
UNREADABLE = "CheckpointUnreadable"
# The manifest's key for the kind of adapter; the oldest checkpoints, all LoRA, lack it.
ADAPTER_TYPE = "adapter_type"


@dataclass(frozen=True)
class Position:
    """The checkpoint that training stands on; empty names are the base itself."""

    digest: str = ""
    name: str = ""
    step: int = 0


class StepState(BaseModel):
    """state.json: the step's place in the tree and its origin.

    It has no clock, because the same step written twice must have the same digest. ``loaded`` is
    the checkpoint whose weights the step began with, where those were not its parent's.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    run: str
    step: int
    run_step: int
    branch: str
    term: int
    parent: str
    parent_name: str
    learning_rate: float
    group_size: int
    loss: str
    metrics: dict[str, float]
    measured: dict[str, dict[str, float]] = Field(default_factory=dict)
    cursor: dict[str, Any]
    taskset: TasksetUsed | None = None
    optimizer_steps: int
    loaded: str = ""

    @property
    def name(self) -> str:
        """The name of its Checkpoint."""
        return checkpoint_name(self.model, self.branch, self.step)


@dataclass(frozen=True)
class Content:
    """A verified checkpoint."""

    stored: Verified
    state: StepState


def write(
    store: CheckpointStore,
    compute: Compute,
    proposal: Proposal,
    state: StepState,
    *,
    base: str,
    key: Key,
    rollouts: list[dict[str, Any]],
    batch: BatchLeft | None = None,
) -> tuple[Stored, bool]:
    """Commits a checkpoint; False if the same one was there already. Raises VolumeFull (507)."""
    with store.staging("checkpoint") as staged:
        compute.write(proposal, staged)
        (staged / STATE_FILE).write_text(state.model_dump_json(indent=1))
        row = {"step": state.step, "run_step": state.run_step, **state.metrics}
        (staged / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        lines = [json.dumps(rollout) + "\n" for rollout in rollouts]
        (staged / "rollouts.jsonl").write_text("".join(lines))
        if batch is not None:
            (staged / BATCH_FILE).write_text(batch.model_dump_json(exclude_defaults=True))
        described = metadata(state, key, base=base, adapter=compute.adapter)
        return store.commit("checkpoint", staged, described)


def read(store: CheckpointStore, digest: str, base: str, adapter: Adapter) -> Content:
    """A verified checkpoint; 409 if it is damaged, of another base or of another adapter."""
    try:
        stored = store.verify("checkpoint", digest)
    except DigestError as error:
        raise CommandError(
            409,
            UNREADABLE,
            str(error),
            "pin the head to another checkpoint with onPin: Branch; or restore the bytes and "
            "delete the trainer's pod",
        ) from error
    if stored.manifest["base"] != base:
        raise CommandError(
            409,
            "BaseMismatch",
            f"checkpoint {digest} was trained on base {stored.manifest['base']}, not {base}",
            "fork the model from a checkpoint of the same base",
        )
    kind = adapter_type(stored)
    if kind != adapter.type:
        raise CommandError(
            409,
            "AdapterMismatch",
            f"checkpoint {digest} was trained with spec.adapter.type {kind}, not {adapter.type}",
            f"fork with a model of type {kind}, or export the checkpoint (espalier checkpoint "
            "export --merged) and make a base of it",
        )
    _same_scale(stored, adapter)
    state = StepState.model_validate_json((stored.path / STATE_FILE).read_text())
    end_if_changed(stored.noted)
    return Content(stored, state)


def batch_left(stored: Stored) -> BatchLeft | None:
    """What is left of the batch that a checkpoint's step came from."""
    if BATCH_FILE not in stored.manifest["files"]:
        return None
    return BatchLeft.model_validate_json((stored.path / BATCH_FILE).read_text())


def _same_scale(stored: Stored, adapter: Adapter) -> None:
    """Raises 409 for a LoRA of another rank or alpha, left by an earlier model of the same name.

    The weights of another rank do not fit; under another alpha they would mean something else.
    """
    for field, key, mine in (
        ("rank", "lora_rank", adapter.lora_rank),
        ("alpha", "lora_alpha", adapter.alpha if adapter.lora_rank else 0),
    ):
        theirs = stored.manifest.get(key, mine)
        if theirs != mine:
            raise CommandError(
                409,
                "AdapterMismatch",
                f"checkpoint {stored.digest} was trained with spec.adapter.{field} {theirs}, and "
                f"this model has {mine}",
                f"create the model with spec.adapter.{field} {theirs} or under another name, or "
                "delete the checkpoints of the earlier model of its name",
            )


def adapter_type(stored: Stored) -> str:
    """LoRA or Full."""
    return str(stored.manifest.get(ADAPTER_TYPE, "LoRA"))


def commit_of(stored: Stored, state: StepState, index: int, created: str) -> Commit:
    """The commit that the operator turns into a Checkpoint."""
    return Commit(
        index=index,
        name=state.name,
        model=state.model,
        run=state.run,
        step=state.step,
        run_step=state.run_step,
        branch=state.branch,
        term=state.term,
        parent=state.parent,
        parent_name=state.parent_name,
        digest=stored.digest,
        size_bytes=stored.size_bytes,
        lora_rank=int(stored.manifest["lora_rank"]),
        learning_rate=state.learning_rate,
        group_size=state.group_size,
        loss=state.loss,
        metrics=state.metrics,
        measured=state.measured,
        taskset=state.taskset,
        created=created,
    )


def metadata(state: StepState, key: Key, *, base: str, adapter: Adapter) -> dict[str, Any]:
    """The manifest's metadata of a checkpoint."""
    return {
        **state.model_dump(include={"model", "run", "step", "run_step", "branch", "term"}),
        "base": base,
        "parent": state.parent,
        "parent_name": state.parent_name,
        "session": key.session,
        "seq": key.seq,
        ADAPTER_TYPE: adapter.type,
        "lora_rank": adapter.lora_rank,
        "lora_alpha": adapter.alpha if adapter.lora_rank else 0,
    }
