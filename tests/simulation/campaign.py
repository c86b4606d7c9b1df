"""Plays a scenario undisturbed and disturbed, and says how the ends differ."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.life import Life
from tests.simulation.scenarios import SCENARIOS, Outcome
from tests.simulation.virtual_time import run
from tests.simulation.weather import Storm, Weather
from tests.simulation.world import BACKOFF_SECONDS, World

SETTLED_SECONDS = 5.0
SHOWN = 700


@dataclass(frozen=True)
class Trial:
    """One way to play a scenario: the operator dies at a step, or a storm of this seed."""

    scenario: str
    kill: int | None = None
    seed: int | None = None

    @property
    def command(self) -> str:
        """What plays it again."""
        words = ["python -m tests.simulation.report --scenario", self.scenario]
        words += ["--kill", str(self.kill)] if self.kill is not None else []
        words += ["--seed", str(self.seed)] if self.seed is not None else []
        return " ".join(words)


@dataclass
class Ending:
    """How a trial ended; ``moments`` are the steps at which the world differed."""

    outcome: Outcome = field(default_factory=dict)
    steps: int = 0
    moments: list[int] = field(default_factory=list)
    crashes: int = 0
    faults: list[str] = field(default_factory=list)


def play(trial: Trial) -> Ending:
    """Play a scenario as the trial says."""
    logging.disable(logging.CRITICAL)
    try:
        return run(_play(trial))
    finally:
        logging.disable(logging.NOTSET)


async def _play(trial: Trial) -> Ending:
    weather = Weather() if trial.seed is None else Storm(trial.seed)
    if trial.seed is not None:
        random.seed(trial.seed)
    life = Life(trial.kill if trial.seed is None else weather.kill_at())
    world, ending = World(life, weather), Ending()
    seen: dict[tuple[int, ...], int] = {}

    def witness() -> None:
        seen.setdefault(world.moment(), life.steps)

    life.witness = witness
    world.start()
    try:
        await SCENARIOS[trial.scenario].story(world)
        weather.calm()
        await world.settle(SETTLED_SECONDS if trial.seed is None else BACKOFF_SECONDS)
        ending.steps, ending.moments = life.steps, sorted(seen.values())
        ending.outcome = SCENARIOS[trial.scenario].compared(world.outcome())
        ending.crashes = world.crashes
        ending.faults += await _restless(world)
    except AssertionError as error:
        ending.faults.append(str(error))
    finally:
        await world.kill()
    ending.faults += world.violations
    if not SCENARIOS[trial.scenario].deletes:
        ending.faults += [f"Checkpoint {name} was lost" for name in world.laws.lost]
    return ending


async def _restless(world: World) -> list[str]:
    """What is written though nothing changed, by this operator and by one started anew."""
    faults = []
    for who in ("operator", "restarted operator"):
        before = len(world.laws.writes)
        await world.rest(10, seconds=1.0)
        for verb, key in world.laws.writes[before:]:
            faults.append(f"the {who} writes though nothing changed: {verb} {key}")
        world.life.die()
    return faults


def differences(expected: Any, found: Any, at: str = "") -> list[str]:
    """Where two outcomes differ, one line each."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = []
        for name in [*expected, *(name for name in found if name not in expected)]:
            lines += differences(expected.get(name), found.get(name), f"{at}/{name}")
        return lines
    if expected == found:
        return []
    was, became = (json.dumps(value)[:SHOWN] for value in (expected, found))
    return [f"{at}: {was} became {became}"]


def compare(undisturbed: Ending, trial: Trial) -> list[str]:
    """Play the trial; what is wrong with its end, with the command that plays it again."""
    ending = play(trial)
    wrong = ending.faults or differences(undisturbed.outcome, ending.outcome)
    if trial.kill is not None and ending.crashes != 1:
        wrong = [*wrong, f"{ending.crashes} crashes"]
    return [f"{line}   [{trial.command}]" for line in wrong]
