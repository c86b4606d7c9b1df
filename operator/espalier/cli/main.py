"""``espalier``: look at models and runs. As ``kubectl-espalier`` on the PATH also a plug-in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from espalier.api.trainablemodel import Tree
from espalier.api.trainingrun import Taskset
from espalier.cli import checkpoint as checkpoints
from espalier.cli import gateway
from espalier.cli.curve import as_png, in_terminal, lines
from espalier.cli.failure import CommandError
from espalier.cli.git import WorkingTree
from espalier.cli.heldout import choose
from espalier.cli.kubectl import Kubectl
from espalier.cli.promote import Wish, promote
from espalier.cli.watch import follow
from espalier.client import GatewayError
from espalier.core.tree import REWARD, render
from espalier.runner.heldout import HeldOut
from espalier.runner.problem import UserError


class _Commands(TyperGroup):
    """Turns failures that a user can read into one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CommandError, GatewayError, UserError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
checkpoint_app = typer.Typer(no_args_is_help=True, help="What a checkpoint holds.")
app.add_typer(checkpoint_app, name="checkpoint")

Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace; that of the current context if not given."),
]
Url = Annotated[str, typer.Option(envvar="ESPALIER_GATEWAY_URL", help="URL of the gateway.")]
Token = Annotated[
    str, typer.Option(envvar="ESPALIER_TOKEN", help="Token: kubectl create token NAME.")
]
Checkpoint = Annotated[
    str, typer.Option(help="A Checkpoint's name, or base; what the head serves if not given.")
]


@app.callback()
def espalier(context: typer.Context, namespace: Namespace = None) -> None:
    """Look at models, checkpoints and training runs of Espalier."""
    context.obj = namespace


@app.command()
def tree(context: typer.Context, model: str, namespace: Namespace = None) -> None:
    """Draw the checkpoint tree of a model: newest first, the head marked by '>'."""
    kubectl = _kubectl(context, namespace)
    drawn = render(kubectl.model(model).status.tree or Tree(), kubectl.checkpoints(model))
    typer.echo("\n".join(drawn) or f"{model} has no checkpoints: its slug serves the base")


@app.command()
def curve(
    context: typer.Context,
    model: str,
    metric: Annotated[str, typer.Option(help="Metric of the Checkpoints.")] = REWARD,
    png: Annotated[Path | None, typer.Option(help="Write a picture too.")] = None,
    namespace: Namespace = None,
) -> None:
    """Draw a metric over the steps, one line a branch."""
    checkpoints = _kubectl(context, namespace).checkpoints(model)
    found = lines(checkpoints, metric)
    if not found:
        known = sorted({m.name for c in checkpoints for m in c.status.metrics})
        raise CommandError(
            f"no checkpoint of {model} has {metric}; there are: {', '.join(known) or 'none'}"
        )
    title = f"{metric} of {model}"
    typer.echo(in_terminal(found, title))
    if png is not None:
        as_png(found, title, png)
        typer.echo(f"written to {png}")


@app.command()
def watch(
    context: typer.Context,
    run: str,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 3600.0,
    namespace: Namespace = None,
) -> None:
    """Follow a run until it has succeeded (exit 0), or is stalled or out of time (exit 1)."""
    kubectl = _kubectl(context, namespace)
    console = Console()
    ended = follow(run, lambda: kubectl.run(run), console, timeout)
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
    chosen = namespace or context.obj
    slug = f"{chosen}/{model}" if chosen else model
    access = _access(url, token)
    answers = asyncio.run(gateway.ask(access, slug, checkpoint, questions, max_tokens))
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: Namespace = None,
) -> None:
    """Ask a run's model tasks of the run's kind that it was not trained on; greedy."""
    access = _access(url, token)
    kubectl = _kubectl(context, namespace)

    def held_out(taskset: Taskset) -> HeldOut:
        return choose(taskset, kubectl, seed=seed, size=size, file=tasks)

    target = (kubectl.namespace(), run)
    done = asyncio.run(gateway.evaluate(access, target, checkpoint, seed=seed, held_out=held_out))
    if as_json:
        typer.echo(json.dumps(done.wire()))
    else:
        mean = f"mean reward {done.mean_reward:.3f} on {done.size} held-out tasks"
        typer.echo(f"{done.model}: {mean}")


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
        return _kubectl(context, namespace or context.obj or declared or None)

    wish = Wish(head=head, checkpoint=checkpoint, path=path)
    done = promote(WorkingTree(git), of_namespace, wish, push=push)
    said = f"{done.head} in {done.path}"
    if done.commit:
        typer.echo(f"pinned {said} to {done.checkpoint}: commit {done.commit}")
    else:
        typer.echo(f"{said} is pinned to {done.checkpoint} already")
    if done.pushed:
        typer.echo("pushed")


@checkpoint_app.command()
def export(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A Checkpoint's name; with --volume also a digest.")],
    *,
    output: Annotated[Path, typer.Option(help="Directory to write.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="A Hugging Face model of base and adapter.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Of a merged model: base, float32, bfloat16 or float16.")
    ] = "base",
    force: Annotated[bool, typer.Option("--force", help="Replace the directory.")] = False,
    volume: Annotated[
        Path | None, typer.Option(help="The volume's directory, if it is mounted here.")
    ] = None,
    namespace: Namespace = None,
) -> None:
    """Write a checkpoint as PEFT and vLLM load it, or merged into a Hugging Face model."""
    options = checkpoints.Options(output, merged, dtype, force)
    if volume is not None:
        checkpoints.export_from_directory(volume, name, options)
    else:
        checkpoints.export_from_cluster(_kubectl(context, namespace), name, options)
    typer.echo(f"wrote {name} to {output}")


def _kubectl(context: typer.Context, namespace: str | None) -> Kubectl:
    return Kubectl(namespace or context.obj)


def _access(url: str, token: str) -> gateway.Access:
    if not url:
        raise CommandError(
            "where is the gateway? Set ESPALIER_GATEWAY_URL or --url, for example after "
            "kubectl -n espalier-system port-forward service/espalier-gateway 8000:80"
        )
    if not token:
        raise CommandError(
            "who asks? Set ESPALIER_TOKEN or --token, for example to $(kubectl create token NAME)"
        )
    return gateway.Access(url, token)


if __name__ == "__main__":
    app()
