"""What a scenario leaves behind for people: out/gitops/<scenario>/."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.gitops.repository import ROOT
from tests.gitops.team import Team

OUT = ROOT / "out/gitops"
KINDS = "trainablemodels,checkpointheads,trainingruns,checkpoints"


def directory(scenario: str) -> Path:
    """The scenario's directory, empty."""
    made = OUT / scenario
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    return made


async def save_team(team: Team, to: Path) -> None:
    """Final objects with the managers of their fields, Events, and the history of Git."""
    objects = await team.kubectl("get", KINDS, "-o=yaml", "--show-managed-fields")
    (to / f"{team.namespace}-objects.yaml").write_text(objects)
    events = await team.kubectl("get", "events", "--sort-by=.lastTimestamp")
    (to / f"{team.namespace}-events.txt").write_text(events)
    log = team.repository.git("log", "--patch", "--reverse", "--format=%n%H %s")
    (to / f"{team.namespace}-git.txt").write_text(log)


def save_lines(lines: Iterable[object], to: Path) -> None:
    """One JSON value a line."""
    to.write_text("".join(json.dumps(line) + "\n" for line in lines))


def save_log(log: Path, to: Path, containing: str) -> None:
    """The lines of a controller's log that name an object."""
    with log.open(errors="replace") as lines:
        to.write_text("".join(line for line in lines if containing in line))
