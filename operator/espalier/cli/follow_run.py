"""Follows a run until it ends: a bar on a terminal, a line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from espalier.api.trainingrun import TrainingRun
from espalier.cli.failure import CliError
from espalier.cli.run_progress import Standing, standing

POLL_SECONDS = 2.0

Show = Callable[[Standing], None]


def follow(
    name: str, read: Callable[[], TrainingRun], console: Console, timeout: float
) -> Standing:
    """The run's last standing: it succeeded.

    Args:
        name: of the run, for messages.
        read: reads the run from the cluster.
        console: where progress is shown.
        timeout: seconds.

    Raises:
        CliError: the run is Stalled, or went on beyond the timeout; names reason and message.
    """
    ends_at = time.monotonic() + timeout
    with _display(name, console) as show:
        while True:
            now = standing(read())
            show(now)
            if now.end == "Succeeded":
                return now
            if now.end == "Stalled":
                raise CliError(f"{name} is Stalled, {now.reason}: {now.message}")
            if time.monotonic() > ends_at:
                raise CliError(f"{name} has not ended within {timeout:.0f} s: {now.line()}")
            time.sleep(POLL_SECONDS)


@contextmanager
def _display(name: str, console: Console) -> Iterator[Show]:
    if console.is_terminal:
        with _bar(name, console) as show:
            yield show
    else:
        yield _lines(name, console)


@contextmanager
def _bar(name: str, console: Console) -> Iterator[Show]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rest]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=None, rest="")

        def show(now: Standing) -> None:
            rest = now.line().partition("  ")[2]
            progress.update(task, total=now.steps, completed=now.step, rest=rest)

        yield show


def _lines(name: str, console: Console) -> Show:
    last = ""

    def show(now: Standing) -> None:
        nonlocal last
        # The estimate changes at every read; only progress is worth a line.
        seen = f"{now.step}/{now.steps} {now.reason}"
        if seen != last:
            last = seen
            console.print(f"{name}  {now.line()}", markup=False, highlight=False, soft_wrap=True)

    return show
