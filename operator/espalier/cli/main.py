"""``espalier``: look at models and runs. As ``kubectl-espalier`` on the PATH also a plug-in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from espalier.api.metric_names import REWARD
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRun
from espalier.cli import (
    adopt,
    checkpoint_commands,
    key_commands,
    model_commands,
    run_commands,
    taskset_commands,
)
from espalier.cli.curve import as_png, in_terminal
from espalier.cli.dev import dev
from espalier.cli.failure import CliError
from espalier.cli.git import WorkingTree
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
from espalier.core.lineage.curve_lines import lines

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False
)
app.add_typer(model_commands.app, name="models")
app.add_typer(run_commands.app, name="run")
app.add_typer(taskset_commands.app, name="taskset")
app.add_typer(checkpoint_commands.app, name="checkpoint")
app.add_typer(checkpoint_commands.rollouts_app, name="rollouts")
app.add_typer(key_commands.app, name="keys")

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
    branches = lines(checkpoints, metric)
    if not branches:
        known = sorted({m.name for c in checkpoints for m in c.status.metrics})
        raise CliError(
            f"no checkpoint of {model} has {metric}; there are: {', '.join(known) or 'none'}"
        )
    title = f"{metric} of {model}"
    typer.echo(in_terminal(branches, title))
    if png is not None:
        try:
            as_png(branches, title, png)
        except ModuleNotFoundError as error:
            raise CliError(
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
        current = cluster.run(run)
        if standing(current).end is None:
            cluster.require_running()
        return current

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
    answers: Annotated[
        int, typer.Option(min=1, max=64, help="Answers to each task; above 1 for pass@k.")
    ] = 1,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Temperature of the answers; 0 is greedy.")
    ] = 0.0,
    record: Annotated[
        str,
        typer.Option(help="Name by which the Checkpoint's status keeps it: eval/NAME/mean_reward."),
    ] = "",
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Ask a run's model tasks of the run's kind that it was not trained on."""
    if answers > 1 and temperature == 0.0:
        raise CliError(
            f"--answers is {answers}, and greedy answers are all the same",
            "usage",
            "give --temperature above 0",
        )
    # Their HTTP library is slow.
    from espalier.cli import gateway_commands  # noqa: PLC0415
    from espalier.cli.heldout_tasks import choose  # noqa: PLC0415
    from espalier.runner.heldout import HeldOut  # noqa: PLC0415

    who = access(url, token)
    cluster = kubectl(context, namespace)

    def held_out(taskset: Taskset) -> HeldOut:
        return choose(taskset, cluster, seed=seed, size=size, file=tasks)

    target = (cluster.namespace(), run)
    wanted = gateway_commands.Wanted(seed, answers, temperature, record)
    done = asyncio.run(
        gateway_commands.evaluate(
            who,
            target,
            checkpoint,
            wanted=wanted,
            held_out=held_out,
            module=cluster.config_map,
        )
    )
    if as_json:
        typer.echo(json.dumps(done.wire()))
    else:
        mean = f"mean reward {done.mean_reward:.3f} on {done.size} held-out tasks"
        errors = f", scorer errors: {done.scorer_errors}" if done.scorer_errors else ""
        passed = f", pass@{answers} {done.metrics[f'pass@{answers}']:.3f}" if answers > 1 else ""
        errors += f", prompts too long: {done.too_long}" if done.too_long else ""
        recorded = f", recorded with {done.recorded}" if done.recorded else ""
        typer.echo(
            f"{done.model}: {mean}{_interval(done.size, done.metrics)}{passed}{errors}{recorded}"
        )


def _interval(tasks: int, metrics: Mapping[str, float]) -> str:
    """The interval of the mean; none for so few tasks that it is not normal."""
    if tasks < 30:
        return ""
    low, high = (metrics[f"mean_reward_{end}"] for end in ("low", "high"))
    return f" (95 %: {low:.3f} to {high:.3f})"


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
    """Make Checkpoints again from a model's volume, after the objects were lost."""
    outcome = adopt.adopt(
        kubectl(context, namespace), model, volume=volume, image=image, dry_run=dry_run
    )
    lines = "\n".join(adopt.described(outcome, dry_run=dry_run))
    show(as_json, adopt.content(outcome), lines)


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
    pinned = f"{done.head} in {done.path}"
    if done.commit:
        typer.echo(f"pinned {pinned} to {done.checkpoint}: commit {done.commit}")
    else:
        typer.echo(f"{pinned} is pinned to {done.checkpoint} already")
    if done.pushed:
        typer.echo("pushed")


if __name__ == "__main__":
    app()
