"""The checkpoints of one model as lines of descent.

Inside a branch steps are a line, so a branch is its base and the checkpoints that carry its name.
That holds as well when some of them are gone: retention and people delete Checkpoints, and what is
left of a branch stays in its place.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import decimal
from espalier.api.metric_names import REWARD
from espalier.api.trainablemodel import TrainableModel
from espalier.core.lineage.integrity import Fault
from espalier.core.manifests.labels import RUN_STEP_ANNOTATION
from espalier.core.names import MAIN, imported_name, parse_checkpoint_name


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
    """The checkpoints of one model, without those that are deleted, or were an earlier model's.

    ``root`` is None while a fork's source is not known.

    ``bases`` are the bases of branches as recorded before: what the first checkpoint of a branch
    says, should that one be gone. ``faults`` are the objects that stay out, by name: no commit can
    have made them. ``best`` is the highest reward that was seen on each branch. ``told`` are those
    that say something of a checkpoint, by its name. ``term_before`` is the highest of what leaves,
    where nothing else is left: an earlier model's trainer may stand there.
    """

    root: Point | None
    by_name: dict[str, Checkpoint]
    by_branch: dict[str, list[Checkpoint]]
    bases: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, Fault] = field(default_factory=dict)
    best: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, Collection[str]] = field(default_factory=dict)
    term_before: int = 0

    def tellers(self, name: str) -> list[Checkpoint]:
        """The checkpoints of the tree that report figures of the one of that name."""
        return [self.by_name[teller] for teller in self.told.get(name, ())]

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
        if branch in self.bases:
            return self.bases[branch]
        line = self.by_branch.get(branch)
        return parent_name(line[0]) if line else ""

    def descending(self, branch: str, branch_base: str = "") -> Iterator[Checkpoint]:
        """The branch and its ancestors, newest first; an empty branch starts at ``branch_base``."""
        for name, end in self._stretches(branch, branch_base):
            line = self.by_branch[name]
            yield from (line[at] for at in range(end - 1, -1, -1))

    def line(self, branch: str, branch_base: str = "") -> list[Checkpoint]:
        """The branch and its ancestors, oldest first."""
        return list(self.descending(branch, branch_base))[::-1]

    def on_line(self, name: str, branch: str, branch_base: str = "") -> bool:
        """Whether ``line`` has the checkpoint of that name."""
        found = self.by_name.get(name)
        if found is None:
            return False
        for stretch, end in self._stretches(branch, branch_base):
            if stretch == found.spec.branch:
                return end > 0 and found.spec.step <= self.by_branch[stretch][end - 1].spec.step
        return False

    def before(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """The nearest ancestor that still exists; None at the root."""
        line = self.by_branch[checkpoint.spec.branch]
        at = upto(line, checkpoint.spec.step - 1)
        if at:
            return line[at - 1]
        start = self._at(self.base(checkpoint.spec.branch))
        found = next((s for s in self._below(start, {checkpoint.spec.branch}) if s[1]), None)
        return self.by_branch[found[0]][found[1] - 1] if found else None

    def newest(self, branch: str, branch_base: str = "") -> Point | None:
        """Where training on that branch stands; None while a fork's source is not known."""
        for stretch, end in self._stretches(branch, branch_base):
            if end:
                return point(self.by_branch[stretch][end - 1])
        return self.root

    def live_branch(self) -> str:
        """The branch that training continued last, by the checkpoints alone."""
        tips = [line[-1] for line in self.by_branch.values()]
        if not tips:
            return MAIN
        return max(tips, key=lambda tip: (tip.spec.term, tip.spec.step)).spec.branch

    def last_term(self) -> int:
        """The highest term that any checkpoint was committed under; 0 without checkpoints.

        Along a branch terms never fall, so the tips tell.
        """
        return max((line[-1].spec.term for line in self.by_branch.values()), default=0)

    def _stretches(self, branch: str, branch_base: str) -> Iterator[tuple[str, int]]:
        """The branches of a line, newest first, and how many checkpoints of each lie on it."""
        line = self.by_branch.get(branch)
        if line:
            yield branch, len(line)
            branch_base = self.base(branch)
        yield from self._below(self._at(branch_base), {branch} if line else set())

    def _below(self, start: tuple[str, int] | None, seen: set[str]) -> Iterator[tuple[str, int]]:
        """The stretches from a place down to the root; ``seen`` ends a cycle."""
        while start is not None and start[0] not in seen:
            branch, step = start
            seen.add(branch)
            yield branch, upto(self.by_branch[branch], step)
            start = self._at(self.base(branch))

    def _at(self, name: str) -> tuple[str, int] | None:
        """Branch and step of that name, of a checkpoint that is gone as well; None for no own."""
        if found := self.by_name.get(name):
            return found.spec.branch, found.spec.step
        if not name or not self.by_name or (self.root is not None and self.root.name == name):
            return None
        model = next(iter(self.by_name.values())).spec.model_ref.name
        parsed = parse_checkpoint_name(model, name)
        return parsed if parsed is not None and parsed[0] in self.by_branch else None


def reward(checkpoint: Checkpoint) -> str | None:
    """The mean reward that was measured of a checkpoint, as a decimal string."""
    # They are in alphabetic order, so that it is among the last.
    value = next((m.value for m in reversed(checkpoint.status.metrics) if m.name == REWARD), "")
    try:
        return value if value and math.isfinite(decimal(value)) else None
    except ArithmeticError:
        return None


def upto(line: list[Checkpoint], step: int) -> int:
    """How many of a branch's checkpoints are of at most that step."""
    return bisect_right(line, step, key=lambda checkpoint: checkpoint.spec.step)


def recorded_bases(model: TrainableModel | None) -> dict[str, str]:
    """The bases of branches as the model's status has them."""
    tree = model.status.tree if model is not None else None
    return {branch.name: branch.base for branch in tree.branches} if tree is not None else {}


def parent_name(checkpoint: Checkpoint) -> str:
    """The name of the checkpoint that this one started from; empty at the base."""
    return checkpoint.spec.parent_ref.name if checkpoint.spec.parent_ref else ""


def root_of(model: TrainableModel, source: Checkpoint | None) -> Point | None:
    """Where a model's lineage starts; ``source`` is the checkpoint that ``spec.source`` names."""
    if model.spec.source.checkpoint_ref is not None:
        return point(source) if source is not None else None
    if model.spec.source.adapter is None:
        return BASE_POINT
    resolved = model.status.resolved
    if resolved is None or resolved.adapter is None:
        return None
    return Point(imported_name(model.metadata.name), 0, resolved.adapter.digest)


def run_step(checkpoint: Checkpoint) -> int:
    """The step of its run that made a checkpoint; 0 where that is not on it."""
    text = checkpoint.metadata.annotations.get(RUN_STEP_ANNOTATION, "")
    return int(text) if text.isdecimal() else 0
