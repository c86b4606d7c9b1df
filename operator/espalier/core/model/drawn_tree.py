"""The checkpoint tree of a model: its branches, and how it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.meta import decimal
from espalier.api.model.tree import Branch, Tree
from espalier.core.checkpoints.checkpoint import is_superseded
from espalier.core.lineage.lineage import Lineage, parent_name, reward
from espalier.core.lineage.lineage_index import grow
from espalier.core.names import MAIN

MAX_BRANCHES = 256


def grown(
    lineage: Lineage,
    model_heads: Sequence[CheckpointHead],
    leader: str,
    before: Tree | None = None,
) -> Tree:
    """The tree as the model's status shows it; ``leader`` is the name of the model's own head.

    ``before`` is the tree as it was: what it says of a branch outlives the checkpoints that are
    deleted.
    """
    current = next(
        (
            head.status.current.name
            for head in model_heads
            if head.metadata.name == leader and head.status.current is not None
        ),
        "",
    )
    known = {branch.name: branch for branch in before.branches} if before is not None else {}
    branches = [
        _branch(name, lineage, model_heads, current, known)
        for name in sorted(lineage.by_branch, key=_order)[-MAX_BRANCHES:]
    ]
    return Tree(checkpoints=len(lineage.by_name), branches=branches)


def _order(branch: str) -> int:
    """Branches in the order that they grew: main, b2, b10."""
    return 0 if branch == MAIN else int(branch.removeprefix("b"))


def _branch(
    name: str,
    lineage: Lineage,
    model_heads: Sequence[CheckpointHead],
    current: str,
    known: Mapping[str, Branch],
) -> Branch:
    line, before = lineage.by_branch[name], known.get(name)
    # Prefer the equal one on record: it need not be written again.
    rewards = [before.best_reward if before is not None else None, lineage.best.get(name)]
    known_rewards = [value for value in rewards if value is not None]
    tip = line[-1].metadata.name
    served = lineage.by_name.get(current)
    return Branch(
        name=name,
        base=lineage.base(name),
        first_step=min([line[0].spec.step, *([before.first_step] if before else [])]),
        last_step=line[-1].spec.step,
        tip=tip,
        best_reward=max(known_rewards, key=decimal, default=None),
        head=True if served is not None and served.spec.branch == name else None,
        superseded=True if is_superseded(tip, model_heads, lineage) else None,
    )


def render(tree: Tree, checkpoints: Iterable[Checkpoint]) -> list[str]:
    """The tree in the manner of ``git log --graph``, newest first, the head marked by ``>``."""
    by_name = {checkpoint.metadata.name: checkpoint for checkpoint in checkpoints}
    lineage = grow(by_name.values(), None, {branch.name: branch.base for branch in tree.branches})
    width = max((len(name) for name in by_name), default=0)
    lines: list[str] = []
    # What each lane of the drawing leads down to.
    lanes: list[str] = []
    for checkpoint in _newest_first(lineage, tree):
        name = checkpoint.metadata.name
        _join(lanes, name, lines)
        if name not in lanes:
            lanes.append(name)
        lane = lanes.index(name)
        graph = " ".join("*" if i == lane else "|" for i in range(len(lanes)))
        lines.append(f"{graph} {_label(checkpoint, width)}".rstrip())
        ancestor = lineage.before(checkpoint)
        start, below = _below(checkpoint, ancestor, tree)
        lanes[lane] = start
        if (gone := checkpoint.spec.step - below - 1) > 0:
            graph = " ".join(":" if i == lane else "|" for i in range(len(lanes)))
            lines.append(f"{graph} {gone} deleted")
    roots = [name for name in dict.fromkeys(lanes) if name not in by_name]
    for root in roots:
        _join(lanes, root, lines)
    lines += [f"o {root or 'base'}" for root in roots]
    return lines


def _below(checkpoint: Checkpoint, ancestor: Checkpoint | None, tree: Tree) -> tuple[str, int]:
    """Name and step of what lies below: an ancestor that is left, or what the line grew from."""
    if ancestor is not None:
        return ancestor.metadata.name, ancestor.spec.step
    branch = next((b for b in tree.branches if b.name == checkpoint.spec.branch), None)
    if branch is None:
        return parent_name(checkpoint), checkpoint.spec.step - 1
    return branch.base, branch.first_step - 1


def _newest_first(lineage: Lineage, tree: Tree) -> list[Checkpoint]:
    """Every checkpoint after all that grew from it; side branches just above their base."""
    by_branch = lineage.by_branch
    order = {branch.name: position for position, branch in enumerate(tree.branches)}
    names = sorted(by_branch, key=lambda name: (order.get(name, len(order)), _order(name)))
    below = {name: lineage.before(by_branch[name][0]) for name in names}
    bases = {name: base.metadata.name if base else "" for name, base in below.items()}

    def walk(branch: str) -> Iterable[Checkpoint]:
        for checkpoint in reversed(by_branch[branch]):
            for child in names:
                if child != branch and bases[child] == checkpoint.metadata.name:
                    yield from walk(child)
            yield checkpoint

    return [c for name in names if not bases[name] for c in walk(name)]


def _join(lanes: list[str], name: str, lines: list[str]) -> None:
    """Draw the lanes that meet in a checkpoint into the leftmost of them."""
    while lanes.count(name) > 1:
        last = len(lanes) - 1 - lanes[::-1].index(name)
        lines.append(" ".join("|" for _ in range(last)) + "/")
        del lanes[last]


def _label(checkpoint: Checkpoint, width: int) -> str:
    value = reward(checkpoint)
    shown = f"{decimal(value):6.3f}" if value is not None else " " * 6
    mark = checkpoint.status.head_mark or ""
    return f"{checkpoint.metadata.name:<{width}}  {shown}  {mark}"
