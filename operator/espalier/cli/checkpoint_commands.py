"""``espalier checkpoint`` and ``espalier rollouts``: look into one checkpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.api.checkpoint import Checkpoint
from espalier.cli import checkpoint_export as files
from espalier.cli import rollout_html
from espalier.cli.compare_checkpoints import Between, between
from espalier.cli.failure import CliError
from espalier.cli.options import AsJson, Namespace, Token, Url, access, commands, kubectl, show
from espalier.core import conditions

app = commands("What a checkpoint holds.")
rollouts_app = commands("What a step was trained on.")

Name = Annotated[str, typer.Argument(help="A Checkpoint's name.")]


@app.command("show")
def show_checkpoint(
    context: typer.Context, name: Name, *, as_json: AsJson = False, namespace: Namespace = None
) -> None:
    """Show where a checkpoint comes from, how it was made and what it measured."""
    checkpoint = kubectl(context, namespace).checkpoint(name)
    content = {
        "name": name,
        **checkpoint.spec.wire(),
        "heads": checkpoint.status.heads,
        "created": checkpoint.metadata.creation_timestamp,
        "metrics": {metric.name: float(metric.value) for metric in checkpoint.status.metrics},
    }
    show(as_json, content, "\n".join(_described(checkpoint)))


@app.command()
def diff(
    context: typer.Context,
    first: Name,
    second: Name,
    *,
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Show how two checkpoints of a model differ: steps, settings, metrics."""
    cluster = kubectl(context, namespace)
    one, other = cluster.checkpoint(first), cluster.checkpoint(second)
    model, another = one.spec.model_ref.name, other.spec.model_ref.name
    if model != another:
        raise CliError(
            f"{first} is of model {model} and {second} of {another}",
            "usage",
            "Name two checkpoints of one model",
        )
    comparison = between(one, other, cluster.checkpoints(model))
    show(as_json, asdict(comparison), "\n".join(_difference(comparison)))


@app.command()
def sample(
    context: typer.Context,
    name: Name,
    questions: Annotated[list[str], typer.Argument()],
    *,
    url: Url = "",
    token: Token = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 32,
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Ask a checkpoint questions, whatever the head serves; greedy."""
    from espalier.cli import gateway_commands  # noqa: PLC0415 - its HTTP library is slow

    cluster = kubectl(context, namespace)
    slug = f"{cluster.namespace()}/{cluster.checkpoint(name).spec.model_ref.name}"
    answers = asyncio.run(
        gateway_commands.ask(access(url, token), slug, name, questions, max_tokens)
    )
    asked = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    text = "\n".join(f"{row['question']}\n    {' '.join(row['answer'].split())}" for row in asked)
    show(as_json, asked, text)


@app.command()
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
    options = files.ExportOptions(output, merged, dtype, force)
    if volume is not None:
        files.export_from_directory(volume, name, options)
    else:
        files.export(kubectl(context, namespace), name, options)
    typer.echo(f"wrote {name} to {output}")


@rollouts_app.command("show")
def show_rollouts(
    context: typer.Context,
    name: Name,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Rollouts to print.")] = 20,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(help="File to write all of them to, as a page to read.")
    ] = None,
    against: Annotated[
        str, typer.Option(help="Checkpoint whose answers the page compares; the parent if empty.")
    ] = "",
    namespace: Namespace = None,
) -> None:
    """Print the rollouts that a checkpoint's step was trained on, or write them as a page."""
    if against and html is None:
        raise CliError("--against is for the page", "usage", "Give --html FILE as well")
    cluster = kubectl(context, namespace)
    found = files.rollouts(cluster, name)
    if not found:
        raise CliError(
            f"{name} keeps no rollouts",
            "not_found",
            "It was imported, its run's rolloutLog keeps none of this step, or it was made by a "
            "trainer that kept none yet",
        )
    if html is not None:
        rollout_html.write(html, cluster, cluster.checkpoint(name), found, against)
        return
    show(as_json, found, "\n".join(described_rollout(row) for row in found[:limit]))


def _described(checkpoint: Checkpoint) -> list[str]:
    spec = checkpoint.spec
    ready = conditions.find(checkpoint.status.conditions, conditions.READY)
    used = spec.hyperparameters
    lines = [
        f"{checkpoint.metadata.name}  step {spec.step} of {spec.model_ref.name}, "
        f"branch {spec.branch}, term {spec.term}",
        f"from    {spec.parent_ref.name if spec.parent_ref else 'base'}"
        + (f", by run {spec.run_ref.name}" if spec.run_ref else ""),
        f"bytes   {spec.size_bytes}  {spec.digest}",
        f"with    learningRate {used.learning_rate}, groupSize {used.group_size}, loss {used.loss}",
        f"heads   {', '.join(checkpoint.status.heads) or 'none'}",
    ]
    if ready is not None and ready.status != "True":
        lines.append(f"Ready   {ready.status}, {ready.reason}: {ready.message}")
    width = max((len(metric.name) for metric in checkpoint.status.metrics), default=0)
    return lines + [f"  {m.name:<{width}}  {m.value}" for m in checkpoint.status.metrics]


def _difference(comparison: Between) -> list[str]:
    lines = [
        f"{comparison.first} -> {comparison.ancestor}: {comparison.back} steps back",
        f"{comparison.ancestor} -> {comparison.second}: {comparison.forward} steps on",
    ]
    lines += [f"  {name}: {a or '-'} -> {b or '-'}" for name, (a, b) in comparison.settings.items()]
    width = max((len(name) for name in comparison.metrics), default=0)
    return lines + [_metric(name, a, b, width) for name, (a, b) in comparison.metrics.items()]


def _metric(name: str, first: float | None, second: float | None, width: int) -> str:
    shown = [f"{value:.6g}" if value is not None else "-" for value in (first, second)]
    change = f"  {second - first:+.6g}" if first is not None and second is not None else ""
    return f"  {name:<{width}}  {shown[0]} -> {shown[1]}{change}"


def described_rollout(row: Mapping[str, Any]) -> str:
    """The reward and the end of the prompt, what the model wrote, and how else it ended."""
    prompt = row.get("prompt") or ""
    chat = [] if isinstance(prompt, str) else prompt
    asked = " ".join(str(message.get("content", "")) for message in chat) or str(prompt)
    completion = json.dumps(str(row.get("completion", "")), ensure_ascii=False)
    mark = "" if row.get("trained", True) else "  not trained"
    reward = row.get("reward")
    paid = f"{reward:+.3f}" if reward is not None else "  none"
    lines = [f"{paid}  {' '.join(asked.split())[-80:]}", f"        {completion}{mark}"]
    return "\n".join(lines + [f"        {line}" for line in _ended(row)])


def _ended(row: Mapping[str, Any]) -> list[str]:
    """How a rollout ended, unless it was done, and what its client noted."""
    lines = []
    stopped = row.get("stop_reason")
    if stopped not in (None, "done"):
        lines.append(f"stopped: {stopped}")
    if row.get("error"):
        lines.append(f"error: {row['error']}")
    if row.get("metadata"):
        noted = json.dumps(row["metadata"], ensure_ascii=False)
        lines.append(f"metadata: {noted[:200]}")
    return lines
