"""Plays every scenario with the operator killed at every moment, and in storms; writes a report.

``python -m tests.simulation.report`` plays all; ``--scenario branch --kill 123`` or ``--seed 7``
plays one trial again and shows how its end differs. Exits with 1 if any end differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.simulation.campaign import Ending, Trial, compare, play
from tests.simulation.scenarios import SCENARIOS

SEEDS = 100
COLUMNS = ("scenario", "awaits", "kills", "seeds", "equal", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.kill is not None or options.seed is not None:
        (name,) = options.scenario
        return _show(compare(play(Trial(name)), Trial(name, options.kill, options.seed)))
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    rows = [_row(name, options) for name in options.scenario or SCENARIOS]
    wrong = [line for row in rows for line in row["wrong"]]
    if options.output:
        options.output.write_text(json.dumps({"scenarios": rows}, indent=1))
    return _show(wrong)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=[])
    parser.add_argument("--kill", type=int, help="the step at which the operator dies")
    parser.add_argument("--seed", type=int, help="the storm to play")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="storms for each scenario")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="take every n-th moment only")
    parser.add_argument("--output", type=Path, help="write the report as JSON to this file")
    options = parser.parse_args(arguments)
    if (options.kill is not None or options.seed is not None) and len(options.scenario) != 1:
        parser.error("--kill and --seed need one --scenario")
    return options


def _row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    started = time.process_time()
    undisturbed = play(Trial(name))
    trials = trials_of(name, undisturbed, options.every)
    kills = len(trials)
    first = options.first_seed
    trials += [Trial(name, seed=seed) for seed in range(first, first + options.seeds)]
    failed = [lines for trial in trials if (lines := compare(undisturbed, trial))]
    row = {
        "scenario": name,
        "awaits": undisturbed.steps,
        "kills": kills,
        "seeds": options.seeds,
        "equal": f"{len(trials) - len(failed)} of {len(trials)}",
        "seconds": round(time.process_time() - started, 1),
        "wrong": [*undisturbed.faults, *(line for lines in failed for line in lines[:20])],
    }
    print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |", flush=True)
    return row


def trials_of(name: str, undisturbed: Ending, every: int) -> list[Trial]:
    """A kill at each moment of the undisturbed run, or at every n-th of them.

    Of the awaits between which nothing was sent, nothing took effect and no time passed, one stands
    for all: a new process finds the same world after each.
    """
    return [Trial(name, kill=step) for step in undisturbed.moments[::every]]


def _show(wrong: Sequence[str]) -> int:
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
