"""``espalier``: look at models and runs. As ``kubectl-espalier`` on the PATH also a plug-in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from espalier.api.metric_names import REWARD
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRun
from espalier.cli import (
    adopt,
    checkpoint_commands,
    model_commands,
    run_commands,
    taskset_commands,
)
from espalier.cli.curve import as_png, in_terminal, lines
from espalier.cli.dev import dev
from espalier.cli.failure import CommandError
from espalier.cli.git import WorkingTree
from espalier.cli.heldout_tasks import choose
from espalier.cli.kubectl import Kubectl
from espalier.cli.options import (
    AsJson,
    Commands,
    DryRun,
    Local,
    Namespace,
    Place,
    Token,
    Url,
    access,
    kubectl,
    show,
)
from espalier.cli.promote import Wish, promote
from espalier.cli.run_progress import standing
from espalier.runner.heldout import HeldOut

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False
)
app.add_typer(model_commands.app, name="models")
app.add_typer(run_commands.app, name="run")
app.add_typer(taskset_commands.app, name="taskset")
app.add_typer(checkpoint_commands.app, name="checkpoint")
app.add_typer(checkpoint_commands.rollouts_app, name="rollouts")

Checkpoint = Annotated[
    str, typer.Option(help="A Checkpoint's name, or base; what the head serves if not given.")
]


@app.callback()
def espalier(context: typer.Context, namespace: Namespace = None, local: Local = None) -> None:
    """Look at models, checkpoints and training runs of Espalier."""
    context.obj = Place(namespace, local)


app.command("tree")(model_commands.checkpoints)
app.command("dev")(dev)


@app.command()
def curve(
    context: typer.Context,
    model: str,
    metric: Annotated[str, typer.Option(help="Metric of the Checkpoints.")] = REWARD,
    png: Annotated[Path | None, typer.Option(help="Write a picture too.")] = None,
    namespace: Namespace = None,
) -> None:
    """Draw a metric over the steps, one line a branch."""
    checkpoints = kubectl(context, namespace).checkpoints(model)
    found = lines(checkpoints, metric)
    if not found:
        known = sorted({m.name for c in checkpoints for m in c.status.metrics})
        raise CommandError(
            f"no checkpoint of {model} has {metric}; there are: {', '.join(known) or 'none'}"
        )
    title = f"{metric} of {model}"
    typer.echo(in_terminal(found, title))
    if png is not None:
        try:
            as_png(found, title, png)
        except ModuleNotFoundError as error:
            raise CommandError(
                f"--png draws with {error.name}, which is not installed",
                "failure",
                "Use pip install 'espalier[cli]': the krew plugin comes without it",
            ) from error
        typer.echo(f"written to {png}")


@app.command()
def watch(
    context: typer.Context,
    run: str,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 3600.0,
    namespace: Namespace = None,
) -> None:
    """Follow a run until it has succeeded (exit 0), or is stalled or out of time (exit 1)."""
    # rich takes a fifth of what every command takes to start.
    from rich.console import Console  # noqa: PLC0415

    from espalier.cli.follow_run import follow  # noqa: PLC0415

    cluster = kubectl(context, namespace)
    console = Console()

    def read() -> TrainingRun:
        found = cluster.run(run)
        if standing(found).end is None:
            cluster.require_running()
        return found

    ended = follow(run, read, console, timeout)
    typer.echo(f"{run} succeeded: {ended.line()}")


@app.command()
def ask(
    context: typer.Context,
    model: str,
    questions: Annotated[list[str], typer.Argument()],
    *,
    url: Url = "",
    token: Token = "",
    checkpoint: Checkpoint = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 32,
    namespace: Namespace = None,
) -> None:
    """Ask a model questions; greedy, so that the same weights give the same answers."""
    from espalier.cli import gateway_commands  # noqa: PLC0415 - its HTTP library is slow

    chosen = namespace or context.obj.namespace
    slug = f"{chosen}/{model}" if chosen else model
    who = access(url, token)
    answers = asyncio.run(gateway_commands.ask(who, slug, checkpoint, questions, max_tokens))
    for question, answer in zip(questions, answers, strict=True):
        typer.echo(f"{question}\n    {' '.join(answer.split())}")


@app.command()
def evaluate(
    context: typer.Context,
    run: str,
    *,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the held-out tasks.")],
    size: Annotated[int, typer.Option(min=1, help="Number of held-out tasks.")] = 64,
    url: Url = "",
    token: Token = "",
    checkpoint: Checkpoint = "",
    tasks: Annotated[
        Path | None,
        typer.Option(help="Held-out tasks as JSON lines, not the run's own."),
    ] = None,
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Ask a run's model tasks of the run's kind that it was not trained on; greedy."""
    from espalier.cli import gateway_commands  # noqa: PLC0415 - its HTTP library is slow

    who = access(url, token)
    cluster = kubectl(context, namespace)

    def held_out(taskset: Taskset) -> HeldOut:
        return choose(taskset, cluster, seed=seed, size=size, file=tasks)

    target = (cluster.namespace(), run)
    done = asyncio.run(
        gateway_commands.evaluate(
            who, target, checkpoint, seed=seed, held_out=held_out, module=cluster.config_map
        )
    )
    if as_json:
        typer.echo(json.dumps(done.wire()))
    else:
        mean = f"mean reward {done.mean_reward:.3f} on {done.size} held-out tasks"
        errors = f", scorer errors: {done.scorer_errors}" if done.scorer_errors else ""
        typer.echo(f"{done.model}: {mean}{errors}")


@app.command("adopt")
def adopt_command(
    context: typer.Context,
    *,
    model: Annotated[str, typer.Option(help="The TrainableModel, applied again on its claim.")],
    volume: Annotated[
        Path | None, typer.Option(help="The volume's directory, if it is mounted here.")
    ] = None,
    image: Annotated[
        str, typer.Option(help="The trainer's image, where no workload tells it.")
    ] = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Make Checkpoints of what lies on a model's volume, after its objects were lost."""
    found = adopt.adopt(
        kubectl(context, namespace), model, volume=volume, image=image, dry_run=dry_run
    )
    lines = "\n".join(adopt.described(found, dry_run=dry_run))
    show(as_json, adopt.content(found), lines)


@app.command("promote")
def promote_command(
    context: typer.Context,
    *,
    git: Annotated[Path, typer.Option(help="Working tree of the repository.")],
    head: Annotated[str, typer.Option(help="The head; the only one if not given.")] = "",
    checkpoint: Annotated[
        str, typer.Option(help="The checkpoint; the newest that passes if not given.")
    ] = "",
    path: Annotated[
        Path | None, typer.Option(help="File of the head, from the repository's root.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Push the commit.")] = False,
    namespace: Namespace = None,
) -> None:
    """Commit a pin of the head in Git, for a checkpoint that passed the head's gate."""

    def of_namespace(declared: str) -> Kubectl:
        return kubectl(context, namespace or context.obj.namespace or declared or None)

    wish = Wish(head=head, checkpoint=checkpoint, path=path)
    done = promote(WorkingTree(git), of_namespace, wish, push=push)
    said = f"{done.head} in {done.path}"
    if done.commit:
        typer.echo(f"pinned {said} to {done.checkpoint}: commit {done.commit}")
    else:
        typer.echo(f"{said} is pinned to {done.checkpoint} already")
    if done.pushed:
        typer.echo("pushed")


if __name__ == "__main__":
    app()
