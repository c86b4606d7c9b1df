"""Asynchronous beside Synchronous on rollouts with a long tail: their rate, and what they teach.

    PYTHONPATH=operator:. python -m bench.loop.schedules MODEL OUT [--rounds 3] [--steps 12]

A rollout answers a sum, which is its reward, and then tells a story whose length has a heavy tail.
They take turns on one ``espalier dev``. Every turn begins at the same checkpoint, to which the head
is moved back, and begins and ends with nothing in flight: none samples beyond a turn's last step.
Both take ``--steps`` steps in a round; the fewer they are, the more the first one counts, for which
Asynchronous waits as Synchronous does. ``held_out`` scores what each turn ended with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.loop.beside_trl import keep_adapter, refuse_what_is_there
from bench.loop.ours import Ours
from bench.loop.setting import Setting
from bench.loop.sums import ANSWER, LONGEST, Sum, story_tokens, trained

from espalier import Asynchronous, Synchronous
from espalier.loop.schedule import Schedule
from espalier.loop.session import Session

SCHEDULES = ("synchronous", "asynchronous")


async def told(task: Sum, session: Session) -> float:
    """An answer, and a story of the length that is drawn for this rollout."""
    (asked,) = task.prompt
    answer = await session.say(asked, max_tokens=ANSWER)
    length = story_tokens(task, session.rollout.rollout_idx)
    await session.say("Tell a long story about it.", max_tokens=length)
    return task.reward(answer.text)


def schedule(name: str, staleness: int) -> Schedule[Any]:
    """A new one for each turn."""
    return Asynchronous(staleness) if name == "asynchronous" else Synchronous()


def sampled(step: Mapping[str, float]) -> int:
    """Rollouts of a step, those of further rounds included; each is two completions."""
    return round(step["completion/tokens_total"] / step["completion/tokens_mean"] / 2)


async def compared(setting: Setting, out: Path, rounds: int, staleness: int) -> None:
    """Appends a line for each turn to ``OUT/pieces.jsonl``, and keeps its last adapter."""
    tasks = trained(setting.seed)
    with tempfile.TemporaryDirectory() as work:
        side = await Ours.start(setting, Path(work) / "espalier")
        try:
            # Warms up, and makes the checkpoint that every turn begins with.
            await side.piece(1, tasks=tasks, rollout=told)
            first = (await side.client.state()).checkpoint
            for turn in range(rounds):
                for name in SCHEDULES if turn % 2 == 0 else SCHEDULES[::-1]:
                    await side.client.set_head(first)
                    row = await side.piece(
                        setting.steps, schedule(name, staleness), tasks=tasks, rollout=told
                    )
                    if len(row["told"]) < setting.steps:
                        # Rounds that teach nothing are not among what it told.
                        raise SystemExit(f"{name} converged: give a lower --learning-rate")
                    row |= {"seed": turn + 1, "side": name, "step": setting.steps}
                    row["load"] = os.getloadavg()[0]
                    row["rollouts"] = sum(map(sampled, row["told"]))
                    with (out / "pieces.jsonl").open("a") as lines:
                        lines.write(json.dumps(row) + "\n")
                    last = await side.adapter((await side.client.state()).checkpoint)
                    keep_adapter(last, out / str(turn + 1) / name / str(setting.steps))
                    rate = row["rollouts"] / row["wall"]
                    print(
                        turn + 1, name, f"{rate:.2f} rollouts/s, {row['cpu']:.1f} CPU s", flush=True
                    )
        finally:
            await side.close()


def main() -> None:
    """Both schedules in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--staleness", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    refuse_what_is_there(given.out, range(1, given.rounds + 1))
    # Groups of older weights need a loss that clips.
    setting = Setting(
        str(given.model),
        max_tokens=LONGEST,
        learning_rate=given.learning_rate,
        steps=given.steps,
        loss="ppo",
    )
    (given.out / "setting.json").write_text(setting.written())
    asyncio.run(compared(setting, given.out, given.rounds, given.staleness))


if __name__ == "__main__":
    main()
