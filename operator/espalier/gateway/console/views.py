"""What the console's API says of models and runs, from the world. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.console import (
    CheckpointView,
    ConditionView,
    EvaluationView,
    HeadView,
    Line,
    ModelView,
    MoveView,
    RunView,
    Series,
    TreeView,
)
from espalier.api.evaluated import EvaluationResult
from espalier.api.meta import Condition, decimal
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.core import conditions
from espalier.core.lineage.curve_lines import CurveLine, lines, value_of
from espalier.core.lineage.lineage import parent_name, reward
from espalier.core.run.progress import remaining_seconds
from espalier.core.run.why import why
from espalier.gateway.world.routing import slug_of
from espalier.gateway.world.world import NamespacedName, ServedWorld

# Of a metric's name, the ends of its interval (loop/evaluation.py).
LOW, HIGH = "_low", "_high"
MEAN = "mean_reward"


@dataclass(frozen=True)
class Standing:
    """What of a head the world does not hold: who moved it, what owns it, who may move it."""

    moved_by: str
    owner: str
    may_move: bool


# Of a head that came between two reads.
UNREAD = Standing(moved_by="", owner="", may_move=False)


def model_views(world: ServedWorld, names: Iterable[NamespacedName]) -> list[ModelView]:
    """Models as the list shows them."""
    # Counted once for all: there may be tens of thousands.
    nodes = Counter(key.beside(c.spec.model_ref.name) for key, c in world.checkpoints.items())
    runs = Counter(key.beside(run.spec.model_ref.name) for key, run in world.runs.items())
    return [_model(world, name, nodes[name], runs[name]) for name in names]


def _model(world: ServedWorld, name: NamespacedName, checkpoints: int, runs: int) -> ModelView:
    model, head = world.models[name], world.head_of(name)
    current = head.status.current if head is not None else None
    served = world.checkpoints.get(name.beside(current.name)) if current is not None else None
    ready = conditions.find(model.status.conditions, conditions.READY)
    return ModelView(
        namespace=name.namespace,
        name=name.name,
        slug=slug_of(world, name),
        source=_source(model),
        head=current.name if current is not None else "",
        step=current.step if current is not None else 0,
        reward=_number(reward(served)) if served is not None else None,
        checkpoints=checkpoints,
        runs=runs,
        ready=_condition(ready) if ready is not None else None,
    )


def tree_view(
    world: ServedWorld, name: NamespacedName, standing: Callable[[CheckpointHead], Standing]
) -> TreeView:
    """A model with its tree."""
    nodes = nodes_of(world, name)
    own = sum(node.spec.model_ref.name == name.name for node in nodes)
    heads = [_head(head, standing(head)) for head in world.heads_of(name)]
    return TreeView(
        model=_model(world, name, own, len(world.runs_of(name))),
        conditions=_conditions(world.models[name].status.conditions),
        checkpoints=[_checkpoint(node, heads) for node in nodes],
        heads=heads,
        metrics=sorted({metric.name for node in nodes for metric in node.status.metrics}),
    )


def nodes_of(world: ServedWorld, name: NamespacedName) -> list[Checkpoint]:
    """The model's checkpoints after the one that it was forked from; parents come first."""
    own = world.checkpoints_of(name)
    own.sort(key=lambda c: (c.metadata.creation_timestamp, c.spec.term, c.spec.step))
    root = world.models[name].status.root_checkpoint_ref
    first = world.checkpoints.get(name.beside(root.name)) if root is not None else None
    return [*([first] if first is not None and first not in own else []), *own]


def series(world: ServedWorld, name: NamespacedName, metric: str) -> Series:
    """A metric over the tree, with its interval where one was measured."""
    nodes = nodes_of(world, name)
    by_name = {node.metadata.name: node for node in nodes}
    drawn = [_line(line, by_name, metric) for line in lines(nodes, metric)]
    return Series(metric=metric, lines=drawn)


def run_view(run: TrainingRun, seen: Mapping[str, TrainingRun], now: datetime) -> RunView:
    """A run and what it waits for; ``seen`` are the runs, by name, that the caller may get."""
    return RunView(
        name=run.metadata.name,
        driver=run.spec.driver,
        step=run.status.step,
        steps=run.spec.steps,
        remaining_seconds=remaining_seconds(run.status.progress, now),
        waits_for=why(run, seen.get),
        conditions=_conditions(run.status.conditions),
    )


def _source(model: TrainableModel) -> str:
    source = model.spec.source
    if source.checkpoint_ref is not None:
        return f"Checkpoint {source.checkpoint_ref.name}"
    base = source.base
    if base is not None and base.hugging_face is not None:
        return base.hugging_face.repository
    if base is not None and base.image is not None:
        return base.image
    return "adapter" if base is None else "base"


def _condition(condition: Condition) -> ConditionView:
    return ConditionView(
        type=condition.type,
        status=condition.status,
        reason=condition.reason,
        message=condition.message,
        since=condition.last_transition_time,
    )


def _conditions(found: Iterable[Condition]) -> list[ConditionView]:
    return [_condition(condition) for condition in found]


def _checkpoint(node: Checkpoint, heads: Sequence[HeadView]) -> CheckpointView:
    spec = node.spec
    return CheckpointView(
        name=node.metadata.name,
        parent=parent_name(node),
        branch=spec.branch,
        step=spec.step,
        term=spec.term,
        run=spec.run_ref.name if spec.run_ref is not None else "",
        created=node.metadata.creation_timestamp,
        reward=_number(reward(node)),
        evaluations=[_evaluation(found) for found in node.status.evaluations],
        heads=[head.name for head in heads if head.current == node.metadata.name],
        superseded=conditions.is_true(node.status.conditions, conditions.SUPERSEDED),
    )


def _evaluation(found: EvaluationResult) -> EvaluationView:
    figures = {metric.name.rpartition("/")[2]: decimal(metric.value) for metric in found.metrics}
    return EvaluationView(
        name=found.name,
        tasks=found.tasks,
        mean_reward=figures.get(MEAN),
        low=figures.get(f"{MEAN}{LOW}"),
        high=figures.get(f"{MEAN}{HIGH}"),
    )


def _head(head: CheckpointHead, standing: Standing) -> HeadView:
    spec, status = head.spec, head.status
    return HeadView(
        name=head.metadata.name,
        mode=spec.mode,
        checkpoint=spec.checkpoint_ref.name if spec.checkpoint_ref and spec.mode == "Pin" else "",
        on_pin=spec.on_pin,
        current=status.current.name if status.current is not None else "",
        target=status.target.name if status.target is not None else "",
        term=status.term,
        moved_by=standing.moved_by,
        owner=standing.owner,
        may_move=standing.may_move,
        history=[
            MoveView(checkpoint=move.name, reason=move.reason, term=move.term, time=move.time)
            for move in status.history
        ],
        conditions=_conditions(status.conditions),
    )


def _line(line: CurveLine, by_name: dict[str, Checkpoint], metric: str) -> Line:
    nodes = [by_name[name] for name in line.names]
    return Line(
        branch=line.branch,
        checkpoints=list(line.names),
        runs=[node.spec.run_ref.name if node.spec.run_ref is not None else "" for node in nodes],
        steps=list(line.steps),
        values=list(line.values),
        low=_ends(nodes, metric, LOW),
        high=_ends(nodes, metric, HIGH),
    )


def _ends(nodes: Sequence[Checkpoint], metric: str, end: str) -> list[float | None]:
    return [value_of(node, f"{metric}{end}") for node in nodes]


def _number(text: str | None) -> float | None:
    return decimal(text) if text is not None else None
