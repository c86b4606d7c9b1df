"""The lineage of one model's checkpoints, kept up to date one checkpoint at a time.

What a change costs depends on the checkpoint that changed, not on how many there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import decimal
from espalier.core.lineage import measurements
from espalier.core.lineage.integrity import Fault, fault
from espalier.core.lineage.lineage import Lineage, Point, parent_name, reward, run_step
from espalier.core.manifests.labels import RUN_UID_ANNOTATION


class LineageIndex:
    """Adds and removes checkpoints of a model; ``lineage`` is the view of them.

    ``model_uid`` is that of the model; empty while there is none, and all checkpoints count.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint] = (), model_uid: str = "") -> None:
        self._model_uid = model_uid
        self._all: dict[str, Checkpoint] = {}
        self._children: dict[str, set[str]] = {}
        self._by_name: dict[str, Checkpoint] = {}
        self._by_branch: dict[str, list[Checkpoint]] = {}
        self._best: dict[str, str] = {}
        self._faults: dict[str, Fault] = {}
        self._by_run: dict[str, list[Checkpoint]] = {}
        self._leaving: dict[str, Checkpoint] = {}
        # By a checkpoint's name: the names of those that report figures of it.
        self._told: dict[str, set[str]] = {}
        for checkpoint in checkpoints:
            self.put(checkpoint)

    @property
    def empty(self) -> bool:
        """Whether the index has no checkpoint."""
        return not self._all

    def lineage(self, root: Point | None, bases: Mapping[str, str] | None = None) -> Lineage:
        """The checkpoints as lines of descent: a view, which later changes show in."""
        return Lineage(
            root,
            self._by_name,
            self._by_branch,
            bases or {},
            self._faults,
            self._best,
            self._told,
            max((c.spec.term for c in self._aside()), default=0) if not self._by_name else 0,
        )

    def made_by(self, run_uid: str) -> Sequence[Checkpoint]:
        """The checkpoints of a run, in the order that they were made: a view as well."""
        return self._by_run.get(run_uid, ())

    def leaving(self) -> list[Checkpoint]:
        """The checkpoints that are being deleted."""
        return list(self._leaving.values())

    def belong_to(self, model_uid: str) -> None:
        """The model was made, perhaps anew: what an earlier one of its name owns is of no tree."""
        if model_uid != self._model_uid:
            self._model_uid = model_uid
            for name in self._all:
                self._judge(name)

    def put(self, checkpoint: Checkpoint) -> None:
        """Take in a checkpoint, or another version of one."""
        name = checkpoint.metadata.name
        before = self._all.get(name)
        if before is not None:
            self._unlink(before)
        self._all[name] = checkpoint
        self._link(checkpoint)
        self._judge(name)
        if before is None or before.spec != checkpoint.spec:
            self._judge_children(name)

    def remove(self, name: str) -> None:
        """Remove a checkpoint, if the index has it."""
        checkpoint = self._all.pop(name, None)
        if checkpoint is None:
            return
        self._unlink(checkpoint)
        self._faults.pop(name, None)
        self._uproot(name)
        self._judge_children(name)

    def _link(self, checkpoint: Checkpoint) -> None:
        name = checkpoint.metadata.name
        self._children.setdefault(parent_name(checkpoint), set()).add(name)
        if checkpoint.metadata.deletion_timestamp is not None:
            self._leaving[name] = checkpoint

    def _unlink(self, checkpoint: Checkpoint) -> None:
        name = checkpoint.metadata.name
        self._leaving.pop(name, None)
        children = self._children[parent_name(checkpoint)]
        children.discard(name)
        if not children:
            del self._children[parent_name(checkpoint)]

    def _judge_children(self, name: str) -> None:
        """Check the children of a parent that appeared, disappeared or changed."""
        for child in [*self._children.get(name, ())]:
            if child != name:
                self._judge(child)

    def _judge(self, name: str) -> None:
        """Put a checkpoint into the tree, or take it out: by its fault, or because it leaves."""
        checkpoint = self._all[name]
        if name in self._leaving or self._was_anothers(checkpoint):
            self._faults.pop(name, None)
            self._uproot(name)
        elif found := fault(checkpoint, self._all):
            self._faults[name] = found
            self._uproot(name)
        else:
            self._faults.pop(name, None)
            self._plant(checkpoint)

    def _aside(self) -> Iterator[Checkpoint]:
        """The checkpoints that are of no tree, though no fault is in them."""
        known = self._by_name.keys() | self._faults.keys()
        return (checkpoint for name, checkpoint in self._all.items() if name not in known)

    def _was_anothers(self, checkpoint: Checkpoint) -> bool:
        """Whether an earlier model of the name owns it, with which it is deleted."""
        uid = self._model_uid
        return bool(uid) and checkpoint.metadata.goes_with_another("TrainableModel", uid)

    def _plant(self, checkpoint: Checkpoint) -> None:
        name, branch = checkpoint.metadata.name, checkpoint.spec.branch
        line = self._by_branch.setdefault(branch, [])
        at = _where(line, checkpoint, _step)
        if (planted := self._by_name.get(name)) is not None:
            line[at] = checkpoint
            self._forget_made(planted)
        else:
            line.insert(at, checkpoint)
        if planted is None or planted.metadata.annotations != checkpoint.metadata.annotations:
            self._retell(planted, checkpoint)
        self._by_name[name] = checkpoint
        if uid := _run_uid(checkpoint):
            made = self._by_run.setdefault(uid, [])
            made.insert(_where(made, checkpoint, _made), checkpoint)
        value, best = reward(checkpoint), self._best.get(branch)
        if value is not None and (best is None or decimal(value) > decimal(best)):
            self._best[branch] = value

    def _uproot(self, name: str) -> None:
        planted = self._by_name.pop(name, None)
        if planted is None:
            return
        self._forget_made(planted)
        self._retell(planted, None)
        branch = planted.spec.branch
        line = self._by_branch[branch]
        if _take(self._by_branch, branch, bisect_left(line, planted.spec.step, key=_step)):
            self._best.pop(branch, None)

    def _retell(self, before: Checkpoint | None, after: Checkpoint | None) -> None:
        """Record whose figures a checkpoint reports that appeared, disappeared or changed."""
        if before is not None:
            for name in measurements.told(before):
                left = self._told[name]
                left.discard(before.metadata.name)
                if not left:
                    del self._told[name]
        if after is not None:
            for name in measurements.told(after):
                self._told.setdefault(name, set()).add(after.metadata.name)

    def _forget_made(self, checkpoint: Checkpoint) -> None:
        if uid := _run_uid(checkpoint):
            _take(self._by_run, uid, bisect_left(self._by_run[uid], _made(checkpoint), key=_made))


def grow(
    checkpoints: Iterable[Checkpoint], root: Point | None, bases: Mapping[str, str] | None = None
) -> Lineage:
    """The lineage of a model's own checkpoints."""
    return LineageIndex(checkpoints).lineage(root, bases)


def _where(line: list[Checkpoint], checkpoint: Checkpoint, key: Callable[[Checkpoint], Any]) -> int:
    """Where a checkpoint belongs in a line; nearly always it is the newest."""
    wanted = key(checkpoint)
    if not line or key(line[-1]) < wanted:
        return len(line)
    return bisect_left(line, wanted, key=key)


def _take(lines: dict[str, list[Checkpoint]], name: str, at: int) -> bool:
    """Take one out of a line; whether that was the last, and the line is gone."""
    del lines[name][at]
    if lines[name]:
        return False
    del lines[name]
    return True


def _step(checkpoint: Checkpoint) -> int:
    return checkpoint.spec.step


def _run_uid(checkpoint: Checkpoint) -> str:
    return checkpoint.metadata.annotations.get(RUN_UID_ANNOTATION, "")


def _made(checkpoint: Checkpoint) -> tuple[int, str]:
    return run_step(checkpoint), checkpoint.metadata.name
