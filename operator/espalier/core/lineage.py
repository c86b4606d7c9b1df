"""The checkpoints of one model as lines of descent.

Inside a branch steps are a line, so a branch is its base and the checkpoints that carry its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainablemodel import TrainableModel
from espalier.core.names import MAIN


@dataclass(frozen=True)
class Point:
    """A place that training can start from: a checkpoint, or the base (empty name and digest)."""

    name: str = ""
    step: int = 0
    digest: str = ""


BASE_POINT = Point()


def point(checkpoint: Checkpoint) -> Point:
    """The place that a checkpoint is."""
    return Point(checkpoint.metadata.name, checkpoint.spec.step, checkpoint.spec.digest)


@dataclass(frozen=True)
class Lineage:
    """The checkpoints of one model. ``root`` is None while a fork's source is not known."""

    root: Point | None
    by_name: dict[str, Checkpoint]
    by_branch: dict[str, list[Checkpoint]]

    def place(self, name: str) -> Point | None:
        """The place of that name: one of the model's checkpoints, its root, or the base."""
        if name in self.by_name:
            return point(self.by_name[name])
        if self.root is not None and self.root.name == name:
            return self.root
        return BASE_POINT if not name else None

    def tip(self, branch: str) -> Checkpoint | None:
        """The newest checkpoint of a branch."""
        line = self.by_branch.get(branch)
        return line[-1] if line else None

    def base(self, branch: str) -> str:
        """The name of the checkpoint that a branch grows from; empty for the model's base."""
        line = self.by_branch.get(branch)
        return parent_name(line[0]) if line else ""

    def line(self, branch: str, branch_base: str = "") -> list[Checkpoint]:
        """The branch and its ancestors, oldest first; an empty branch starts at ``branch_base``."""
        line = list(reversed(self.by_branch.get(branch, [])))
        name = parent_name(line[-1]) if line else branch_base
        seen = {checkpoint.metadata.name for checkpoint in line}
        while name in self.by_name and name not in seen:
            seen.add(name)
            line.append(self.by_name[name])
            name = parent_name(line[-1])
        return list(reversed(line))

    def newest(self, branch: str, branch_base: str = "") -> Point | None:
        """Where training on that branch stands; None while a fork's source is not known."""
        line = self.line(branch, branch_base)
        return point(line[-1]) if line else self.root

    def live_branch(self) -> str:
        """The branch that training went on with last, told from the checkpoints alone."""
        tips = [line[-1] for line in self.by_branch.values()]
        if not tips:
            return MAIN
        return max(tips, key=lambda tip: (tip.spec.epoch, tip.spec.step)).spec.branch

    def last_epoch(self) -> int:
        """The highest epoch that any checkpoint was committed under; 0 without checkpoints."""
        return max((c.spec.epoch for c in self.by_name.values()), default=0)


def grow(checkpoints: Iterable[Checkpoint], root: Point | None) -> Lineage:
    """The lineage of a model's own checkpoints."""
    by_name = {checkpoint.metadata.name: checkpoint for checkpoint in checkpoints}
    by_branch: dict[str, list[Checkpoint]] = {}
    for checkpoint in sorted(by_name.values(), key=lambda c: (c.spec.step, c.metadata.name)):
        by_branch.setdefault(checkpoint.spec.branch, []).append(checkpoint)
    return Lineage(root, by_name, by_branch)


def parent_name(checkpoint: Checkpoint) -> str:
    """The name of the checkpoint that this one started from; empty at the base."""
    return checkpoint.spec.parent_ref.name if checkpoint.spec.parent_ref else ""


def root_of(model: TrainableModel, source: Checkpoint | None) -> Point | None:
    """Where a model's lineage starts; ``source`` is the checkpoint that ``spec.source`` names."""
    if model.spec.source.checkpoint_ref is None:
        return BASE_POINT
    return point(source) if source is not None else None
