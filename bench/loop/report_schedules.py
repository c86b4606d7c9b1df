"""The table of what ``schedules`` and ``held_out`` left.

PYTHONPATH=operator:. python -m bench.loop.report_schedules OUT
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from espalier.loop.evaluation import figures

GOAL = 1.4


def table(out: Path) -> Iterator[str]:
    """Rollouts a second by schedule, and what the last adapter is worth."""
    pieces = [json.loads(line) for line in (out / "pieces.jsonl").read_text().splitlines()]
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    yield "| schedule | rollouts | a second | CPU-s a rollout | held-out reward | waiting for |"
    yield "|---|---|---|---|---|---|"
    rates: dict[str, list[float]] = {}
    for side in sorted({piece["side"] for piece in pieces}, reverse=True):
        own = [piece for piece in pieces if piece["side"] == side]
        rates[side] = [piece["rollouts"] / piece["wall"] for piece in own]
        count = sum(piece["rollouts"] for piece in own)
        wall, cpu = (sum(piece[unit] for piece in own) for unit in ("wall", "cpu"))
        phases: Counter[str] = Counter()
        for piece in own:
            phases.update(piece["phases"])
        waits = ", ".join(f"{name} {s / phases.total():.0%}" for name, s in phases.most_common(3))
        right = [score["right"] for score in scores if score["side"] == side]
        found = figures(list(zip(*right, strict=True)), ())
        low, high = found["mean_reward_low"], found["mean_reward_high"]
        reward = f"{found['mean_reward']:.2f} ({low:.2f} to {high:.2f})"
        rate = f"{count / wall:.2f}"
        yield f"| {side} | {count} | {rate} | {cpu / count:.2f} | {reward} | {waits} |"
    pairs = zip(rates["asynchronous"], rates["synchronous"], strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    yield f"\nAsynchronous over Synchronous: {median(ratios):.2f} (goal {GOAL}); by round {each}"


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]))))
