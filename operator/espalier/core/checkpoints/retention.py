"""Which checkpoints may be deleted: what no rule of their run keeps and nothing needs.

Needed, and never deleted whatever the rules say: what heads serve, have served, move to or name;
what other models fork from; what a run is held near (``kl.reference``); what clients of Tinker's
API saved under a name, until that expires; and, for resuming and for the shape of the tree, the
first checkpoint and the tip of every branch and what a branch grows from. The checkpoints between
may go: a checkpoint holds all of its weights and of Adam's state, so nothing is replayed through
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.meta import decimal
from espalier.api.run.checkpoint_policy import CheckpointPolicy, KeepBest
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.core.lineage import measurements
from espalier.core.lineage.lineage import Lineage


@dataclass(frozen=True)
class RetentionView:
    """All that retention depends on: the model's runs, every head and model of its namespace.

    ``referring`` are the runs of the namespace, any of which may name a checkpoint. ``now``, as RFC
    3339, ends names of saved weights.
    """

    lineage: Lineage
    runs: Sequence[TrainingRun] = ()
    heads: Sequence[CheckpointHead] = ()
    models: Sequence[TrainableModel] = ()
    referring: Sequence[TrainingRun] = ()
    now: str = ""


def expendable(view: RetentionView) -> list[Checkpoint]:
    """The checkpoints that may go, oldest first; those without a run's rules all stay."""
    policies = {run.metadata.name: _policy(run) for run in view.runs}
    if not any(policies.values()):
        return []
    by_run: dict[str, list[Checkpoint]] = {}
    for checkpoint in view.lineage.by_name.values():
        run = checkpoint.spec.run_ref.name if checkpoint.spec.run_ref else ""
        if policies.get(run) is not None and checkpoint.metadata.deletion_timestamp is None:
            by_run.setdefault(run, []).append(checkpoint)
    if not by_run:
        return []
    needs = needed(view)
    found: list[Checkpoint] = []
    for run, made in by_run.items():
        policy = policies[run]
        if policy is not None:
            stay = _kept(made, policy)
            free = [c for c in made if c.metadata.name not in stay | needs.keys()]
            found += [c for c in free if not any(s.lasts(view.now) for s in c.status.saves)]
    return sorted(found, key=_age)


def has_told(checkpoint: Checkpoint, lineage: Lineage) -> bool:
    """Whether what a checkpoint says of others stands in their status, or they are gone."""
    named = (lineage.by_name.get(name) for name in measurements.told(checkpoint))
    return all(
        measurements.metrics(other, lineage.tellers(other.metadata.name)) == other.status.metrics
        for other in named
        if other is not None and other.metadata.deletion_timestamp is None
    )


def needed(view: RetentionView, leaving: Collection[str] = ()) -> dict[str, str]:
    """The checkpoints that must stay, by name, and what needs each.

    ``leaving`` are names of those that are being deleted: they are of the tree no more, but heads,
    forks and runs may need their bytes.
    """
    reasons: dict[str, str] = {}
    for name, reason in (
        *_by_tree(view.lineage),
        *_by_heads(view.heads),
        *_by_forks(view.models),
        *_by_runs(view.referring),
    ):
        reasons[name] = reason
    there = view.lineage.by_name.keys() | leaving
    return {name: reason for name, reason in reasons.items() if name in there}


def needed_elsewhere(
    name: str,
    heads: Collection[CheckpointHead],
    models: Collection[TrainableModel],
    runs: Collection[TrainingRun] = (),
) -> str:
    """What needs a checkpoint whose model is gone, as a sentence; empty for nothing."""
    needs = (*_by_heads(heads), *_by_forks(models), *_by_runs(runs))
    return next((why for who, why in needs if who == name), "")


def _policy(run: TrainingRun) -> CheckpointPolicy | None:
    """The rules of a run; one that names no rule keeps everything."""
    policy = run.spec.checkpoint
    if run.metadata.deletion_timestamp is not None or policy is None:
        return None
    rules = (policy.keep_last, policy.keep_every_steps, policy.keep_best)
    return policy if any(rule is not None for rule in rules) else None


def _kept(made: Sequence[Checkpoint], policy: CheckpointPolicy) -> set[str]:
    """The names that any rule of a run keeps of what it made."""
    kept: list[Checkpoint] = []
    if policy.keep_last is not None:
        kept += sorted(made, key=_age)[-policy.keep_last :]
    if policy.keep_every_steps is not None:
        kept += [c for c in made if c.spec.step % policy.keep_every_steps == 0]
    if policy.keep_best is not None:
        kept += _best(made, policy.keep_best)
    return {checkpoint.metadata.name for checkpoint in kept}


def _best(made: Sequence[Checkpoint], rule: KeepBest) -> list[Checkpoint]:
    """The highest values, of equal ones the newest; and what may be measured yet.

    A checkpoint is measured when the next step was taken from its samples. One that was passed over
    in between has no value and is none of the best.
    """
    scored = [(value, c) for c in made if (value := _value(c, rule.metric)) is not None]
    ranked = sorted(scored, key=lambda entry: (entry[0], _age(entry[1])), reverse=True)
    last = max((_age(c) for _, c in scored), default=None)
    open_ = [c for c in made if last is None or _age(c) > last]
    return [checkpoint for _, checkpoint in ranked[: rule.count]] + open_


def _value(checkpoint: Checkpoint, metric: str) -> float | None:
    found = measurements.value(checkpoint, metric)
    return decimal(found) if found else None


def _age(checkpoint: Checkpoint) -> tuple[int, int, str]:
    """The order that a model's checkpoints were made in: terms only rise, steps within one too."""
    return checkpoint.spec.term, checkpoint.spec.step, checkpoint.metadata.name


def _by_tree(lineage: Lineage) -> Iterator[tuple[str, str]]:
    for branch, line in lineage.by_branch.items():
        yield line[0].metadata.name, f"branch {branch} begins with it"
        yield lineage.base(branch), f"branch {branch} grows from it"
        yield line[-1].metadata.name, f"it is the tip of branch {branch}"


def _by_heads(heads: Collection[CheckpointHead]) -> Iterator[tuple[str, str]]:
    for head in heads:
        spec, status, name = head.spec, head.status, head.metadata.name
        for ref in (status.branch_base, status.previous, status.latest):
            if ref is not None:
                yield ref.name, f"CheckpointHead {name} may return to it"
        if status.target is not None:
            yield status.target.name, f"CheckpointHead {name} moves to it"
        if status.current is not None:
            yield status.current.name, f"CheckpointHead {name} serves it"
        if spec.checkpoint_ref is not None:
            yield spec.checkpoint_ref.name, f"CheckpointHead {name} names it"


def _by_forks(models: Collection[TrainableModel]) -> Iterator[tuple[str, str]]:
    for model in models:
        if model.spec.source.checkpoint_ref is not None:
            name = model.spec.source.checkpoint_ref.name
            yield name, f"TrainableModel {model.metadata.name} forks from it"


def _by_runs(runs: Collection[TrainingRun]) -> Iterator[tuple[str, str]]:
    for run in runs:
        reference = run.spec.kl.reference
        named = reference.checkpoint_ref if reference is not None else None
        if named is not None and run.metadata.deletion_timestamp is None:
            yield named.name, f"TrainingRun {run.metadata.name} names it in kl.reference"
