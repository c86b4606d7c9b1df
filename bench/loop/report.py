"""Tables and a picture of what ``beside_trl`` and ``held_out`` left.

    PYTHONPATH=operator:. python -m bench.loop.report OUT [--target 0.6] [--picture FILE.svg]

The time to the target is the sum over the pieces until the first adapter whose held-out reward is
at least the target; evaluation and starts are not in it. Intervals are 95 %, of the mean over
tasks.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from espalier.loop.evaluation import figures

Row = Mapping[str, Any]
SIDES = ("espalier", "trl")
NAMES = {"espalier": "Espalier", "trl": "TRL GRPOTrainer"}
PHASES = ("sampling", "reward", "training", "commit", "swap", "idle")
GOAL = 3.0


@dataclass(frozen=True)
class Results:
    """What two sides did, piece by piece, and what their adapters are worth."""

    pieces: Sequence[Row]
    scores: Sequence[Row]

    @classmethod
    def of(cls, out: Path) -> Results:
        """Reads the lines of both files."""
        read = [
            [json.loads(line) for line in (out / name).read_text().splitlines()]
            for name in ("pieces.jsonl", "scores.jsonl")
        ]
        return cls(*read)

    @property
    def seeds(self) -> list[int]:
        """Those that both sides have pieces of."""
        return sorted(
            set.intersection(*({p["seed"] for p in self.pieces if p["side"] == s} for s in SIDES))
        )

    def of_side(self, side: str, seed: int | None = None) -> list[Row]:
        """The pieces of a side, in order."""
        return [p for p in self.pieces if p["side"] == side and seed in (None, p["seed"])]

    def steps(self) -> list[int]:
        """At which some adapter of both sides was scored."""
        found = [{s["step"] for s in self.scores if s["side"] == side} for side in SIDES]
        return sorted(set.intersection(*found))

    def right(self, side: str, step: int) -> dict[int, list[int]]:
        """Right answers by seed."""
        wanted = ("base", 0) if step == 0 else (side, step)
        rows = [s for s in self.scores if (s["side"], s["step"]) == wanted]
        return {row["seed"]: row["right"] for row in rows}

    def reward(self, side: str, step: int) -> dict[str, float]:
        """Mean over tasks, each over the seeds, with its interval."""
        return figures(list(zip(*self.right(side, step).values(), strict=True)), ())

    def spent(self, side: str, seed: int, target: float) -> tuple[int, float, float] | None:
        """Step, wall-clock and CPU seconds at the first adapter that reaches the target."""
        wall = cpu = 0.0
        for piece in self.of_side(side, seed):
            wall, cpu = wall + piece["wall"], cpu + piece["cpu"]
            right = self.right(side, piece["step"]).get(seed)
            if right is not None and fmean(right) >= target:
                return piece["step"], wall, cpu
        return None


def costs(results: Results) -> Iterator[str]:
    """What a step costs each side, and by how much."""
    yield "| a step | CPU-s, median (lowest to highest) | wall-clock s | pieces |"
    yield "|---|---|---|---|"
    for side in SIDES:
        cells = [_spread(_per_step(results, side, unit)) for unit in ("cpu", "wall")]
        yield f"| {NAMES[side]} | {cells[0]} | {cells[1]} | {len(results.of_side(side))} |"
    pairs = _pairs(results)
    ratios = [_spread([b[unit] / a[unit] for a, b in pairs], 2) for unit in ("cpu", "wall")]
    yield f"| TRL over Espalier, of neighbours | {ratios[0]} | {ratios[1]} | {len(pairs)} |"


def split(results: Results) -> Iterator[str]:
    """Where the wall-clock time of a step goes."""
    yield "| share of wall-clock | " + " | ".join(PHASES) + " |"
    yield "|---" * (len(PHASES) + 1) + "|"
    for side in SIDES:
        total: Counter[str] = Counter()
        for piece in results.of_side(side):
            total.update(piece["phases"])
        cells = [f"{total[p] / total.total():.0%}" if p in total else "" for p in PHASES]
        yield f"| {NAMES[side]} | " + " | ".join(cells) + " |"


def rewards(results: Results) -> Iterator[str]:
    """Held-out reward by step, mean of the seeds with its interval."""
    yield "| step | Espalier | TRL GRPOTrainer | seeds |"
    yield "|---|---|---|---|"
    for step in [0, *results.steps()]:
        cells = []
        for side in SIDES:
            found = results.reward(side, step)
            low, high = found["mean_reward_low"], found["mean_reward_high"]
            cells.append(f"{found['mean_reward']:.2f} ({low:.2f} to {high:.2f})")
        seeds = " and ".join(str(len(results.right(side, step))) for side in SIDES)
        yield f"| {step} | {cells[0]} | {cells[1]} | {seeds if step else ''} |"


def times(results: Results, target: float) -> Iterator[str]:
    """Time to the target by seed."""
    ratio = f"TRL over Espalier: CPU, wall (goal {GOAL:g})"
    yield f"| seed | side | step at {target:g} | CPU-s | wall-clock s | {ratio} |"
    yield "|---|---|---|---|---|---|"
    for seed in results.seeds:
        spent = {side: results.spent(side, seed, target) for side in SIDES}
        ours, theirs = spent.values()
        ratio = f"{theirs[2] / ours[2]:.1f}, {theirs[1] / ours[1]:.1f}" if ours and theirs else ""
        for side, found in spent.items():
            cells = f"{found[0]} | {found[2]:.0f} | {found[1]:.0f}" if found else "not reached | | "
            yield f"| {seed} | {NAMES[side]} | {cells} | {ratio if side == 'trl' else ''} |"


def draw(results: Results, path: Path) -> None:
    """Held-out reward over steps and over CPU seconds: thin lines are seeds."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "espalier", "font.size": 9})
    figure, (by_step, by_time) = pyplot.subplots(
        1, 2, figsize=(8, 3), layout="constrained", sharey=True
    )
    steps = [0, *results.steps()]
    for side, colour in zip(SIDES, ("#2f6f4f", "#b5651d"), strict=True):
        found = [results.reward(side, step) for step in steps]
        mean = [one["mean_reward"] for one in found]
        low, high = ([one[f"mean_reward_{end}"] for one in found] for end in ("low", "high"))
        by_step.plot(steps, mean, color=colour, marker="o", markersize=3, label=NAMES[side])
        by_step.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        for seed in results.seeds:
            spent, cpu = 0.0, [0.0]
            values = [fmean(results.right(side, 0)[0])]
            for piece in results.of_side(side, seed):
                spent += piece["cpu"]
                cpu.append(spent)
                values.append(fmean(results.right(side, piece["step"])[seed]))
            by_step.plot(steps[: len(values)], values, color=colour, linewidth=0.6, alpha=0.7)
            by_time.plot(cpu, values, color=colour, marker="o", markersize=2, linewidth=0.8)
    by_step.set(xlabel="optimizer step", ylabel="held-out reward")
    by_time.set(xlabel="CPU seconds, start and evaluation left out")
    by_step.legend(frameon=False)
    for axes in (by_step, by_time):
        axes.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _per_step(results: Results, side: str, unit: str) -> list[float]:
    found = []
    for seed in sorted({piece["seed"] for piece in results.of_side(side)}):
        before = 0
        for piece in results.of_side(side, seed):
            found.append(piece[unit] / (piece["step"] - before))
            before = piece["step"]
    return found


def _pairs(results: Results) -> list[tuple[Row, Row]]:
    """Pieces of both sides for the same steps of the same seed, taken one after the other."""
    theirs = {(p["seed"], p["step"]): p for p in results.of_side("trl")}
    ours = results.of_side("espalier")
    return [(p, theirs[key]) for p in ours if (key := (p["seed"], p["step"])) in theirs]


def _spread(values: Sequence[float], digits: int = 1) -> str:
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Prints the tables, and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", type=float, default=0.6)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    results = Results.of(given.out)
    for table in (costs, split, rewards):
        print("\n".join(table(results)), end="\n\n")
    print("\n".join(times(results, given.target)))
    if given.picture is not None:
        draw(results, given.picture)


if __name__ == "__main__":
    main()
