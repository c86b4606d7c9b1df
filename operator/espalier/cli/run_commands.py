"""``espalier run``: create, logs, why, suspend, resume."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from espalier.cli.failure import CommandError
from espalier.cli.options import AsJson, DryRun, Namespace, Yes, commands, confirm, kubectl, show
from espalier.cli.ownership import not_owned_by_git
from espalier.cli.why import why as explain
from espalier.core.manifests.labels import MODEL, ROLE, RUN

RUNS = "trainingruns.espalier.dev"
Process = Literal["runner", "trainer", "rollout"]

app = commands("Training runs.")


@app.command()
def create(
    context: typer.Context,
    name: str,
    *,
    model: Annotated[str, typer.Option(help="To train.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")],
    learning_rate: Annotated[str, typer.Option(help='Such as "1e-5".')] = "",
    loss: Annotated[
        str, typer.Option(help="By its wire name; importance_sampling with a taskset.")
    ] = "",
    group_size: Annotated[
        int | None, typer.Option(min=1, help="Rollouts of one task; 8 with a taskset.")
    ] = None,
    groups_per_step: Annotated[
        int | None, typer.Option(min=1, help="Tasks of one step; 8. With a taskset only.")
    ] = None,
    config_map: Annotated[str, typer.Option(help="ConfigMap with tasks.jsonl.")] = "",
    dataset: Annotated[str, typer.Option(help="A dataset of reasoning-gym.")] = "",
    size: Annotated[int | None, typer.Option(min=1, help="Tasks in the taskset; 256.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the taskset; 1.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of one completion; 256 with a taskset.")
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    namespace: Namespace = None,
) -> None:
    """Create a run; without --config-map and --dataset one that your own script drives, which then
    decides what is not given here and is bound by what is."""
    if config_map and dataset:
        raise CommandError("--config-map and --dataset name two tasksets", "usage", "Give one")
    source = {"configMap": {"name": config_map}} if config_map else {}
    source = {"reasoningGym": {"dataset": dataset}} if dataset else source
    asked = {"--groups-per-step": groups_per_step, "--size": size, "--seed": seed}
    unused = [option for option, value in asked.items() if value is not None]
    if not source and unused:
        raise CommandError(
            f"{', '.join(unused)}: a run without a taskset has no tasks to count",
            "usage",
            "Name one with --config-map or --dataset, or leave these out: your script chooses",
        )
    if source and not learning_rate:
        raise CommandError("the runner needs --learning-rate", "usage", 'Give one, such as "1e-5"')
    given = {
        "loss": {"name": loss or "importance_sampling"} if loss or source else None,
        "learningRate": learning_rate or None,
        "groupSize": group_size,
        "groupsPerStep": groups_per_step,
        "sampling": {"maxTokens": max_tokens} if max_tokens is not None else None,
        "taskset": {
            "seed": 1 if seed is None else seed,
            "size": 256 if size is None else size,
            **source,
        }
        if source
        else None,
    }
    spec: dict[str, Any] = {
        "modelRef": {"name": model},
        "driver": "Runner" if source else "Client",
        "steps": steps,
        **{field: value for field, value in given.items() if value is not None},
    }
    manifest = {
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": spec,
    }
    cluster = kubectl(context, namespace)
    # The API server takes a run of a model that is not there yet; who types one wants it there.
    cluster.model(model)
    cluster.create(manifest, dry_run=dry_run)
    said = "would create" if dry_run else "created"
    show(as_json, manifest, f"{said} run {name}; follow it: espalier watch {name}")


@app.command()
def logs(
    context: typer.Context,
    name: str,
    *,
    of: Annotated[Process, typer.Option(help="Whose.")] = "runner",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    tail: Annotated[int, typer.Option(min=-1, help="Last lines; -1: all.")] = -1,
    namespace: Namespace = None,
) -> None:
    """Print the logs of a run's runner, or of its model's trainer or rollouts."""
    cluster = kubectl(context, namespace)
    run = cluster.run(name)
    owner = f"{RUN}={name}" if of == "runner" else f"{MODEL}={run.spec.model_ref.name}"
    select = ("--selector", f"{owner},{ROLE}={of}")
    if not cluster.call("get", "pods", *select, "-o", "name").strip():
        raise CommandError(
            f"run {name} has no {of} pod now", "not_found", f"espalier run why {name} says why"
        )
    options = ("--all-containers", "--prefix", f"--tail={tail}", *(("-f",) if follow else ()))
    with cluster.stream("logs", *select, *options) as lines:
        for line in lines:
            typer.echo(line.decode(errors="replace"), nl=False)


@app.command()
def why(
    context: typer.Context, name: str, *, as_json: AsJson = False, namespace: Namespace = None
) -> None:
    """Say in a sentence what a run waits for."""
    cluster = kubectl(context, namespace)
    said = explain(cluster.run(name), cluster.run)
    show(as_json, {"run": name, "why": said}, said)


@app.command()
def suspend(
    context: typer.Context,
    name: str,
    *,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    namespace: Namespace = None,
) -> None:
    """Stop a run after what is committed; its trainer and runner are freed."""
    _suspend(context, name, True, as_json=as_json, dry_run=dry_run, yes=yes, namespace=namespace)


@app.command()
def resume(
    context: typer.Context,
    name: str,
    *,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    namespace: Namespace = None,
) -> None:
    """Let a suspended run go on at its next step."""
    _suspend(context, name, False, as_json=as_json, dry_run=dry_run, yes=yes, namespace=namespace)


def _suspend(
    context: typer.Context,
    name: str,
    value: bool,
    *,
    as_json: bool,
    dry_run: bool,
    yes: bool,
    namespace: str | None,
) -> None:
    verb = "suspend" if value else "resume"
    cluster = kubectl(context, namespace)
    not_owned_by_git(cluster.raw(RUNS, name))
    confirm(f"{verb} run {name}?", yes=yes, dry_run=dry_run)
    cluster.patch(RUNS, name, {"spec": {"suspend": value}}, dry_run=dry_run)
    content = {"run": name, "suspend": value, "dry_run": dry_run}
    show(as_json, content, f"{'would ' if dry_run else ''}{verb} {name}")
