"""``espalier run``: create, logs, why, suspend, resume."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from espalier.api.run.taskset import SOURCES
from espalier.cli.failure import CliError
from espalier.cli.options import AsJson, DryRun, Namespace, Yes, commands, confirm, kubectl, show
from espalier.cli.ownership import not_owned_by_git
from espalier.cli.run_options import RunOption, given, spec_of, with_run_options
from espalier.core.manifests.labels import MODEL, ROLE, RUN
from espalier.core.run.why import why as explain

RUNS = "trainingruns.espalier.dev"
Process = Literal["runner", "trainer", "rollout"]

app = commands("Training runs.")


@app.command()
@with_run_options
def create(
    context: typer.Context,
    name: str,
    *,
    model: Annotated[str, typer.Option(help="To train.")],
    as_json: AsJson = False,
    dry_run: DryRun = False,
    namespace: Namespace = None,
    **fields: Any,
) -> None:
    """Create a run; without --config-map and --dataset one that your own script drives, which then
    decides what is not given here and is bound by what is."""
    manifest = {
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {"modelRef": {"name": model}, **_spec(given(fields))},
    }
    cluster = kubectl(context, namespace)
    # The API server accepts a run of a model that does not exist yet; here that is a typing error.
    cluster.model(model)
    cluster.create(manifest, dry_run=dry_run)
    verb = "would create" if dry_run else "created"
    show(as_json, manifest, f"{verb} run {name}; follow it: espalier watch {name}")


def _spec(options: list[tuple[RunOption, Any]]) -> dict[str, Any]:
    """The fields of a run's spec, but for its model; the driver is Runner where a taskset is given.

    Raises:
        CliError: options that contradict each other, or one that the runner needs is missing.
    """
    flags = {option.path: option.flag for option, _ in options}
    spec = spec_of(options)
    sources = [source for source in SOURCES if source in spec.get("taskset", {})]
    if len(sources) > 1:
        several = " and ".join(
            next(flag for path, flag in flags.items() if source in path) for source in sources
        )
        raise CliError(f"{several} name two tasksets", "usage", "Give one")
    if not sources:
        unused = [f for path, f in flags.items() if path[0] in ("groupsPerStep", "taskset")]
        if unused:
            raise CliError(
                f"{', '.join(unused)}: a run without a taskset has no tasks to count",
                "usage",
                "Name one with --config-map or --dataset, or leave these out: your script chooses",
            )
        return {"driver": "Client", **spec}
    if "learningRate" not in spec:
        raise CliError("the runner needs --learning-rate", "usage", 'Give one, such as "1e-5"')
    spec["loss"] = {"name": "importance_sampling", **spec.get("loss", {})}
    spec["taskset"] = {"seed": 1, **spec["taskset"]}
    return {"driver": "Runner", **spec}


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
        raise CliError(
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
    sentence = explain(cluster.run(name), cluster.run)
    show(as_json, {"run": name, "why": sentence}, sentence)


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
