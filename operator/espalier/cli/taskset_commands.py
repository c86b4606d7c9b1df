"""``espalier taskset``: preview, calibrate. Neither needs a trainer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.api.run.taskset import Taskset
from espalier.cli.options import (
    Access,
    AsJson,
    Namespace,
    Token,
    Url,
    access,
    commands,
    kubectl,
    show,
)
from espalier.cli.run_tasks import RunManifest, declared, opened_or_played

if TYPE_CHECKING:
    from espalier.runner.calibration import Calibration, Lengths
    from espalier.runner.open_rewards import Surroundings
    from espalier.runner.task_source import TaskSource

app = commands("Tasks of a run, before anything is trained.")

Run = Annotated[str, typer.Argument(help="The run; the only one of --file if not given.")]
Manifest = Annotated[
    Path | None, typer.Option("--file", "-f", help="Its manifest, where it is not applied yet.")
]
TaskFile = Annotated[
    Path | None,
    typer.Option("--tasks", help="A copy of its tasks, where they lie on a claim or in an image."),
]


@app.command()
def preview(
    context: typer.Context,
    run: Run = "",
    *,
    file: Manifest = None,
    tasks: TaskFile = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Tasks to print.")] = 3,
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Print the first tasks of a run as they are asked, and what the scorer compares with."""
    cluster = kubectl(context, namespace)
    wanted = declared(cluster, run, file)
    found = opened_or_played(wanted, cluster, tasks)
    content = asyncio.run(_preview(wanted.taskset, found, count))
    shown = content["tasks"]
    text = "\n\n".join(map(_task_text, shown))
    show(
        as_json, content, f"{text}\n\n{len(shown)} of {content['size']} tasks, {content['digest']}"
    )


@app.command("calibrate")
def calibrate_command(
    context: typer.Context,
    run: Run = "",
    *,
    file: Manifest = None,
    tasks: TaskFile = None,
    groups: Annotated[int, typer.Option(min=1, help="Tasks to ask, from the first.")] = 16,
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint that answers; the base if not given.")
    ] = "",
    url: Url = "",
    token: Token = "",
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Sample a run's first groups as the run would, and say whether it could learn from them."""
    cluster = kubectl(context, namespace)
    wanted = declared(cluster, run, file)
    taskset = opened_or_played(wanted, cluster, tasks)
    slug = f"{wanted.namespace}/{wanted.run.spec.model_ref.name}"
    from espalier.cli.reward_surroundings import modules_of, surroundings  # noqa: PLC0415

    who = access(url, token)
    around = surroundings(who, wanted.namespace, modules_of(wanted.config_maps, cluster))
    done = asyncio.run(
        _calibrate(who, slug, wanted, taskset, around, groups=groups, checkpoint=checkpoint)
    )
    show(as_json, done.wire(), _calibration_text(done))


async def _preview(spec: Taskset, tasks: TaskSource, count: int) -> dict[str, Any]:
    """The first tasks; their source is open as long as it tells them."""
    try:
        await tasks.ready()
        shown = [tasks.told(index) for index in range(min(count, tasks.size))]
        used = tasks.used(spec)
        return {"size": used.size, "digest": used.digest, "tasks": shown}
    finally:
        await tasks.close()


async def _calibrate(
    access: Access,
    slug: str,
    wanted: RunManifest,
    tasks: TaskSource,
    around: Surroundings,
    *,
    groups: int,
    checkpoint: str,
) -> Calibration:
    from espalier.cli.gateway_commands import PATIENCE  # noqa: PLC0415
    from espalier.client import GatewayClient  # noqa: PLC0415
    from espalier.runner.calibration import calibrate  # noqa: PLC0415
    from espalier.runner.open_rewards import open_rewards  # noqa: PLC0415
    from espalier.runner.opened_taskset import OpenedTaskset  # noqa: PLC0415
    from espalier.runner.rewards import Group  # noqa: PLC0415

    spec = wanted.run.spec
    opened = await OpenedTaskset.open(
        spec, tasks, lambda run, found: open_rewards(run, found, around)
    )
    try:
        async with GatewayClient(access.url, slug, access.token, patience=PATIENCE) as client:
            indices = range(min(groups, opened.tasks.size))
            outcomes = await opened.sample(client, indices, spec, checkpoint)
    finally:
        await opened.close()
    groups_found = [one for one in outcomes if isinstance(one, Group)]
    too_long = len(outcomes) - len(groups_found)
    return calibrate(groups_found, spec.group_filter, too_long)


def _task_text(shown: dict[str, Any]) -> str:
    lines = [f"{message['role']}: {message['content']}" for message in shown["messages"]]
    answer = [f"answer: {shown['answer']}"] if shown["answer"] is not None else []
    data = [f"{key}: {value}" for key, value in shown.get("data", {}).items()]
    return "\n".join([f"== {shown['id']}", *lines, *answer, *data])


def _calibration_text(done: Calibration) -> str:
    lines = [f"asked          {done.groups} tasks, {done.answers} answers"]
    if done.too_long:
        lines.append(f"too long       {done.too_long} tasks, whose prompts do not fit")
    if done.reward_mean is not None:
        mean, spread = f"{done.reward_mean:.3f}", f"{done.spread:.3f}"
        lines.append(f"reward         mean {mean}, deviation within a group {spread}")
    lines.append(
        f"groups         {done.teaching:.0%} teach, {done.solved:.0%} all solved, "
        f"{done.failed:.0%} all failed"
    )
    if done.prompt_tokens is not None and done.answer_tokens is not None:
        lines.append(f"prompt tokens  {_lengths_text(done.prompt_tokens)}")
        lines.append(f"answer tokens  {_lengths_text(done.answer_tokens)}, {done.cut:.0%} cut")
    if done.scorer_errors:
        lines.append(f"scorer errors  {done.scorer_errors}")
    remedy = f". {done.remedy}" if done.remedy else ""
    return "\n".join([*lines, f"{done.verdict}{remedy}"])


def _lengths_text(lengths: Lengths) -> str:
    return (
        f"{lengths.shortest} to {lengths.longest}, median {lengths.median}, "
        f"nine of ten up to {lengths.nine_of_ten}"
    )
