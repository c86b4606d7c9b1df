"""Names of saved weights: in the status of the Checkpoint that they are, so that they outlive every
process; before a model's first step, in the status of its run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from espalier.api.checkpoint import Checkpoint
from espalier.api.saved import SAVES_MOST, Save
from espalier.core.names import parse_checkpoint_name
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.tinker.names import TinkerModel, WeightsPath
from espalier.gateway.world.turn import active_run
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.contention import despite_contention
from espalier.kube.objects import ObjectKey

# Of its own: what one manager leaves out of an apply is removed.
MANAGER = "espalier-gateway-saves"


@dataclass(frozen=True)
class Saved:
    """Weights under a name.

    Attributes:
        path: the name.
        checkpoint: the Checkpoint that they are; empty before the first step.
        save: when and for how long.
        size_bytes: of the checkpoint, None for none.
        given: whether a client gave the name; else it is the Checkpoint's own.
    """

    path: WeightsPath
    checkpoint: str
    save: Save
    size_bytes: int | None = None
    given: bool = True


@dataclass(frozen=True)
class Recorded:
    """What became of a wish to save: why it cannot be, or whether anything was written for it."""

    problem: str = ""
    wrote: bool = False


def now() -> str:
    """The time, RFC 3339 in UTC to the second."""
    return _text(datetime.now(UTC))


def after(seconds: int | None) -> str | None:
    """The time after so many seconds from now; None for never."""
    return None if seconds is None else _text(datetime.now(UTC) + timedelta(seconds=seconds))


def every(world: ServedWorld, namespace: str) -> Iterator[Saved]:
    """What is saved in a namespace, oldest first."""
    at = now()
    found = []
    for name, checkpoint in world.checkpoints.items():
        if name.namespace == namespace:
            size = checkpoint.spec.size_bytes
            found += [_saved(s, name.name, size) for s in checkpoint.status.saves if s.lasts(at)]
    for name, run in world.runs.items():
        if name.namespace == namespace:
            found += [_saved(s, "", None) for s in run.status.saves if s.lasts(at)]
    known = [one for one in found if one is not None]
    yield from sorted(known, key=lambda one: (one.save.time, one.path.key))


def find(world: ServedWorld, path: WeightsPath) -> Saved | None:
    """The weights of a path: saved under its name, or a Checkpoint of its model."""
    trained = path.model.trained
    saved = [one for one in every(world, trained.namespace) if one.path.key == path.key]
    if saved:
        return saved[-1]
    checkpoint = world.checkpoints.get(trained.beside(path.name))
    if checkpoint is None or checkpoint.spec.model_ref.name != trained.name:
        return None
    return of_checkpoint(checkpoint, path)


def of_checkpoint(checkpoint: Checkpoint, path: WeightsPath) -> Saved:
    """A Checkpoint under its own name, which lasts as long as it does."""
    save = Save(path=path.key[:256], time=checkpoint.metadata.creation_timestamp)
    return Saved(path, checkpoint.metadata.name, save, checkpoint.spec.size_bytes, given=False)


def is_made(world: ServedWorld, model: NamespacedName, checkpoint: str) -> bool:
    """Whether the operator has made a Checkpoint that the trainer has told of.

    It makes them in order: one that another of its branch follows was made, and is gone if it is
    not there.
    """
    named = parse_checkpoint_name(model.name, checkpoint)
    if named is None:
        return True
    for one in world.checkpoints:
        found = parse_checkpoint_name(model.name, one.name)
        if one.namespace == model.namespace and found is not None:
            branch, step = found
            if branch == named[0] and step >= named[1]:
                return True
    return False


class Saves:
    """Writes names."""

    def __init__(self, watch: WorldWatch, cluster: Cluster) -> None:
        self._watch = watch
        self._cluster = cluster

    async def record(
        self,
        path: WeightsPath,
        checkpoint: str,
        *,
        ttl_seconds: int | None,
        metadata: Mapping[str, str] | None,
        overwrite: bool,
    ) -> Recorded:
        """Saves a checkpoint (empty: the model before its first step) under a name.

        Saved again under the same name, a checkpoint takes the end and the metadata that are given
        now; asked for the same again, nothing is written.
        """
        before = find(self._watch.world, path)
        if before is not None and not before.given:
            bare = ttl_seconds is None and not metadata
            return Recorded(_own_name(before, checkpoint, bare=bare))
        same = before is not None and before.checkpoint == checkpoint
        if before is not None and not (same or overwrite):
            return Recorded(_taken(before))
        if before is not None and same:
            made = datetime.fromisoformat(before.save.time)
            if before.save == _save(path, made, ttl_seconds, metadata):
                return Recorded()
        save = _save(path, datetime.now(UTC), ttl_seconds, metadata)
        if problem := await self._put(self._place(path.model, checkpoint), save):
            return Recorded(problem)
        if before is not None and not same:
            await self.change(before, expires_at=now())
        return Recorded(wrote=True)

    async def change(self, saved: Saved, *, expires_at: str | None) -> None:
        """Gives a name another end; one that has passed removes it."""
        place = self._place(saved.path.model, saved.checkpoint)
        await self._put(place, saved.save.model_copy(update={"expires_at": expires_at}))

    def _place(self, model: TinkerModel, checkpoint: str) -> ObjectKey:
        namespace = model.trained.namespace
        if checkpoint:
            return ObjectKey("Checkpoint", namespace, checkpoint)
        run = active_run(self._watch.world, model.trained)
        if run is None:
            raise RefusalError(409, "NoActiveRun", f"no TrainingRun trains {model.trained} now")
        return ObjectKey("TrainingRun", namespace, run.metadata.name)

    async def _put(self, place: ObjectKey, save: Save) -> str:
        try:
            # The operator writes the status in between.
            return await despite_contention(lambda: self._write(place, save))
        except ClusterError as error:
            raise not_ready(
                "SaveNotRecorded", f"the save {save.path} was not recorded: {error.message}"
            ) from error

    async def _write(self, place: ObjectKey, save: Save) -> str:
        body = await self._cluster.get(place)
        if body is None:
            return f"{place} was deleted"
        at = now()
        before = [Save.model_validate(one) for one in body.get("status", {}).get("saves", [])]
        others = [one for one in before if one.path != save.path and one.lasts(at)]
        if len(others) >= SAVES_MOST:
            return f"{place} has {len(others)} names already, the most there can be: delete some"
        seen = {n: body["metadata"][n] for n in ("name", "namespace", "uid", "resourceVersion")}
        saves = [one.wire() for one in sorted([*others, save], key=lambda one: one.path)]
        await self._cluster.apply_status(
            place.kind, {"metadata": seen, "status": {"saves": saves}}, manager=MANAGER
        )
        return ""


def _save(
    path: WeightsPath, made: datetime, ttl_seconds: int | None, metadata: Mapping[str, str] | None
) -> Save:
    ends = None if ttl_seconds is None else _text(made + timedelta(seconds=ttl_seconds))
    noted = json.dumps(metadata) if metadata else None
    return Save(path=path.key, time=_text(made), expires_at=ends, metadata=noted)


def _taken(before: Saved) -> str:
    other = before.checkpoint or "the model before its first step"
    return f"path: {before.path} is {other} already: save under another name, or with overwrite"


def _own_name(before: Saved, checkpoint: str, *, bare: bool) -> str:
    """Why weights cannot be saved under the name of a Checkpoint; empty for its own, ``bare``."""
    if before.checkpoint != checkpoint:
        return _taken(before)
    if bare:
        return ""
    return (
        f"path: {before.path} is the name of the Checkpoint itself, which lasts as long as it does "
        "and notes nothing: save under another name, or without ttl_seconds and user_metadata"
    )


def _saved(save: Save, checkpoint: str, size_bytes: int | None) -> Saved | None:
    path = WeightsPath.read(f"tinker://{save.path}")
    return Saved(path, checkpoint, save, size_bytes) if path is not None else None


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def metadata_of(save: Save) -> dict[str, Any] | None:
    """What the client noted of a save."""
    return json.loads(save.metadata) if save.metadata else None
