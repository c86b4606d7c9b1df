"""Runs Espalier and TRL's GRPOTrainer on the arithmetic example, in alternating pieces.

    PYTHONPATH=operator:. python -m bench.loop.beside_trl MODEL OUT [--seeds 1 2 3] [--steps 8]

Appends a line of JSON for each piece to ``OUT/pieces.jsonl`` and keeps the adapter after each as
``OUT/<seed>/<side>/<step>``; ``bench.loop.held_out`` scores those, ``bench.loop.report`` tells of
both. Every process computes on one thread: on a shared machine two threads spend their time in
waiting for each other. The starts of both sides are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from bench.loop.ours import Ours
from bench.loop.setting import Setting
from bench.loop.theirs import Theirs

KEPT = ("adapter_model.safetensors", "adapter_config.json")


async def compared(setting: Setting, out: Path, piece: int) -> None:
    """One seed: both sides take ``piece`` steps in turn."""
    with tempfile.TemporaryDirectory() as work:
        async with AsyncExitStack() as stack:
            theirs = await Theirs.start(setting, Path(work) / "trl")
            stack.push_async_callback(theirs.close)
            ours = await Ours.start(setting, Path(work) / "espalier")
            stack.push_async_callback(ours.close)
            sides: dict[str, Ours | Theirs] = {"espalier": ours, "trl": theirs}
            for turn, step in enumerate(range(piece, setting.steps + 1, piece)):
                # Who begins changes, so that neither has all the quiet moments.
                names = list(sides) if turn % 2 == 0 else list(sides)[::-1]
                for name in names:
                    row = await sides[name].piece(piece)
                    adapter = await sides[name].adapter(sides[name].name(step))
                    keep_adapter(adapter, out / str(setting.seed) / name / str(step))
                    row |= {"seed": setting.seed, "side": name, "step": step}
                    row["load"] = os.getloadavg()[0]
                    with (out / "pieces.jsonl").open("a") as lines:
                        lines.write(json.dumps(row) + "\n")
                    spent = f"{row['wall']:.1f} s, {row['cpu']:.1f} CPU s"
                    print(setting.seed, name, step, spent, flush=True)


def keep_adapter(adapter: Path, place: Path) -> None:
    """Copies an adapter without its optimizer."""
    place.mkdir(parents=True)
    for file in KEPT:
        shutil.copy(adapter / file, place)


def refuse_what_is_there(out: Path, seeds: Sequence[int]) -> None:
    """Makes the directory; a seed is measured once."""
    for seed in seeds:
        if (out / str(seed)).exists():
            raise SystemExit(f"{out} has seed {seed} already: give other --seeds, or another OUT")
    out.mkdir(parents=True, exist_ok=True)


def main() -> None:
    """All seeds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--piece", type=int, default=2)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    refuse_what_is_there(given.out, given.seeds)
    for seed in given.seeds:
        setting = Setting(
            str(given.model),
            seed=seed,
            groups=given.groups,
            steps=given.steps,
            learning_rate=given.learning_rate,
        )
        (given.out / "setting.json").write_text(setting.written())
        asyncio.run(compared(setting, given.out, given.piece))


if __name__ == "__main__":
    main()
