"""``espalier models``: list, fork, checkpoints, head."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.model.tree import Tree
from espalier.api.trainablemodel import TrainableModel
from espalier.cli.failure import CliError
from espalier.cli.kubectl import Kubectl
from espalier.cli.options import (
    AsJson,
    DryRun,
    Namespace,
    Quiet,
    Yes,
    commands,
    confirm,
    kubectl,
    show,
)
from espalier.cli.ownership import not_owned_by_git
from espalier.cli.table import table
from espalier.core import conditions
from espalier.core.head.editor import asked_by
from espalier.core.lineage.lineage import reward
from espalier.core.model.drawn_tree import render

POLL_SECONDS = 0.5
HEADS = "checkpointheads.espalier.dev"

app = commands("Models, their checkpoints and their heads.")


@app.command("list")
def list_models(
    context: typer.Context,
    *,
    as_json: AsJson = False,
    quiet: Quiet = False,
    namespace: Namespace = None,
) -> None:
    """List the models of the namespace."""
    cluster = kubectl(context, namespace)
    models = sorted(cluster.models(), key=lambda model: model.metadata.name)
    if quiet:
        show(False, None, "\n".join(model.metadata.name for model in models))
        return
    heads = {head.metadata.name: head for head in cluster.heads()}
    rows = [_row(model, heads.get(model.metadata.name)) for model in models]
    text = table(rows) or "no models: kubectl apply one, or fork one with `espalier models fork`"
    show(as_json, rows, text)


@app.command()
def fork(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A model, or one of its Checkpoints.")],
    *,
    name: Annotated[str, typer.Option("--name", "-n", help="Of the new model.")],
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", help="Be content when it is there.")
    ] = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Namespace.")] = None,
) -> None:
    """Make a model that starts from what another one serves, or from a Checkpoint."""
    cluster = kubectl(context, namespace)
    origin, checkpoint = _origin(cluster, source)
    if cluster.exists("trainablemodels.espalier.dev", name):
        if not if_not_exists:
            raise CliError(
                f"model {name} exists", "conflict", "Take another name, or --if-not-exists"
            )
        show(as_json, {"name": name, "existed": True}, f"{name} exists")
        return
    confirm(f"fork {name} from {checkpoint or source}?", yes=yes, dry_run=dry_run)
    manifest = forked(origin, checkpoint, name)
    cluster.create(manifest, dry_run=dry_run)
    made = {"name": name, "source": checkpoint or source, "existed": False, "dry_run": dry_run}
    done = "would fork" if dry_run else "forked"
    show(
        as_json,
        made,
        f"{done} {name} from {checkpoint or source}\n"
        f"train it: espalier.TrainingClient({name!r}), or espalier run create",
    )


@app.command()
def checkpoints(
    context: typer.Context,
    model: str,
    *,
    as_json: AsJson = False,
    quiet: Quiet = False,
    namespace: Namespace = None,
) -> None:
    """Draw the checkpoint tree: newest first, branches, rewards, heads, and who moved them."""
    cluster = kubectl(context, namespace)
    described = cluster.model(model)
    listed = cluster.checkpoints(model)
    if quiet:
        show(False, None, "\n".join(checkpoint.metadata.name for checkpoint in listed))
        return
    heads = cluster.raw_heads(model)
    drawn = render(described.status.tree or Tree(), listed)
    if not drawn:
        drawn = [f"{model} has no checkpoints: its slug serves the base"]
    text = "\n".join([*drawn, *(_moved(head) for head in heads)])
    show(as_json, [_checkpoint(checkpoint) for checkpoint in listed], text)


@app.command()
def head(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model, or a head of one.")],
    *,
    set_: Annotated[str, typer.Option("--set", help="Checkpoint to pin it to.")] = "",
    track: Annotated[bool, typer.Option("--track", help="Follow training again.")] = False,
    on_pin: Annotated[
        str, typer.Option(help="What the run does meanwhile: Pause, Branch or Continue.")
    ] = "Branch",
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it is served.")] = False,
    timeout: Annotated[float, typer.Option(help="Of --follow, in seconds.")] = 300.0,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    namespace: Namespace = None,
) -> None:
    """Show a head, or move it."""
    cluster = kubectl(context, namespace)
    if set_ and track:
        raise CliError("--set and --track ask for two things", "usage", "Give one of them")
    raw = cluster.raw(HEADS, name)
    if set_ or track:
        not_owned_by_git(raw)
        change = _change(set_, on_pin)
        confirm(f"{_asked(name, set_, on_pin)}?", yes=yes, dry_run=dry_run)
        cluster.patch(HEADS, name, {"spec": change}, dry_run=dry_run)
        if dry_run:
            planned = {"dry_run": True, "action": "set_head", "head": name, "spec": change}
            show(as_json, planned, f"would {_asked(name, set_, on_pin)}")
            return
    if follow:
        _follow(cluster, name, timeout)
    raw = cluster.raw(HEADS, name)
    show(as_json, {"name": name, **raw["spec"], **(raw.get("status") or {})}, _head_text(raw))


def forked(origin: TrainableModel, checkpoint: str, name: str) -> dict[str, Any]:
    """The manifest of a fork: like its origin, starting from a checkpoint or from the same base."""
    spec = origin.spec.wire()
    if checkpoint:
        spec["source"] = {"checkpointRef": {"name": checkpoint}}
    return {
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "TrainableModel",
        "metadata": {"name": name},
        "spec": spec,
    }


def _origin(cluster: Kubectl, source: str) -> tuple[TrainableModel, str]:
    """The model that a fork copies, and the checkpoint that it starts from, if any."""
    if cluster.exists("checkpoints.espalier.dev", source):
        checkpoint = cluster.checkpoint(source)
        return cluster.model(checkpoint.spec.model_ref.name), source
    model = cluster.model(source)
    current = cluster.head(source).status.current if cluster.exists(HEADS, source) else None
    return model, current.name if current is not None else ""


def _row(model: TrainableModel, head: CheckpointHead | None) -> dict[str, Any]:
    current = head.status.current if head is not None else None
    ready = conditions.find(model.status.conditions, conditions.READY)
    return {
        "name": model.metadata.name,
        "source": _source(model),
        "head": current.name if current is not None and current.name else "base",
        "step": current.step if current is not None else 0,
        "checkpoints": model.status.tree.checkpoints if model.status.tree else 0,
        "ready": ready.status if ready is not None else "Unknown",
        "reason": ready.reason if ready is not None else "NotSeen",
    }


def _source(model: TrainableModel) -> str:
    source = model.spec.source
    if source.checkpoint_ref is not None:
        return source.checkpoint_ref.name
    return next(iter((source.base.wire() if source.base else {"adapter": 0}).keys()))


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    parent = checkpoint.spec.parent_ref
    value = reward(checkpoint)
    return {
        "name": checkpoint.metadata.name,
        "parent": parent.name if parent is not None else None,
        "branch": checkpoint.spec.branch,
        "step": checkpoint.spec.step,
        "term": checkpoint.spec.term,
        "reward": float(value) if value is not None else None,
        "heads": checkpoint.status.heads,
        "digest": checkpoint.spec.digest,
        "created": checkpoint.metadata.creation_timestamp,
        "metrics": {metric.name: float(metric.value) for metric in checkpoint.status.metrics},
    }


def _moved(head: dict[str, Any]) -> str:
    name, status = head["metadata"]["name"], head.get("status") or {}
    current = (status.get("current") or {}).get("name") or "base"
    last = (status.get("history") or [{}])[0]
    asks = head["spec"]["mode"] if head["spec"]["mode"] == "Track" else _pin(head["spec"])
    who = asked_by(head["metadata"])
    by = f", asked by {who}" if who else ""
    when = f", {last['reason'].lower()} {last['time']}" if last else ""
    return f"> {name}: {current} ({asks}{by}{when})"


def _pin(spec: dict[str, Any]) -> str:
    return f"Pin {spec['checkpointRef']['name']}, onPin {spec.get('onPin', 'Pause')}"


def _head_text(raw: dict[str, Any]) -> str:
    status = raw.get("status") or {}
    lines = [_moved(raw)]
    by_type = {c["type"]: c for c in status.get("conditions") or ()}
    if ready := by_type.get("Ready"):
        lines.append(f"Ready {ready['status']}, {ready['reason']}: {ready['message']}")
    lines += [
        f"  {move['time']}  {move['reason']:<9} {move['name'] or 'base'}  term {move['term']}"
        for move in status.get("history") or ()
    ]
    return "\n".join(lines)


def _change(checkpoint: str, on_pin: str) -> dict[str, Any]:
    if not checkpoint:
        return {"mode": "Track"}
    return {"mode": "Pin", "checkpointRef": {"name": checkpoint}, "onPin": on_pin}


def _asked(name: str, checkpoint: str, on_pin: str) -> str:
    return f"pin {name} to {checkpoint}, onPin {on_pin}" if checkpoint else f"let {name} track"


def _follow(cluster: Kubectl, name: str, timeout: float) -> None:
    """Waits until the operator serves what the head asks for.

    Raises:
        CliError: the head is Stalled, or the time is over; says why.
    """
    ends_at, last = time.monotonic() + timeout, ""
    while True:
        head = cluster.head(name)
        seen = head.status.observed_generation >= head.metadata.generation
        ready = conditions.find(head.status.conditions, conditions.READY)
        standing = f"{ready.reason}: {ready.message}" if seen and ready else "not seen yet"
        if standing != last:
            typer.echo(f"{name}  {standing}", err=True)
            last = standing
        if seen and ready is not None and ready.status == "True":
            return
        if seen and conditions.is_true(head.status.conditions, conditions.STALLED):
            raise CliError(f"{name} is Stalled, {standing}")
        if time.monotonic() > ends_at:
            raise CliError(f"{name} is not served within {timeout:.0f} s: {standing}", "timeout")
        cluster.require_running()
        time.sleep(POLL_SECONDS)
