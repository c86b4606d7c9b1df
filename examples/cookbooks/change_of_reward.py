"""A change of mind: the reward was wrong, so the head goes back and training branches there.

First even digits are rewarded. Then it should have been odd ones: instead of unlearning, the head
moves back to an early checkpoint, and a branch grows from it under the new reward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from curve import Curve
from sums import SUMS, Sum

from espalier import Fit, FitConfig, Sampling, Session, TrainingClient

FIRST, SECOND, BACK_TO = 8, 24, "tiny-000001"


def prefers(remainder: int) -> Callable[[Sum, Session], Awaitable[float]]:
    """A rollout that is rewarded for a digit of this remainder by two."""

    async def play(task: Sum, session: Session) -> float:
        turn = await session.sample([{"role": "user", "content": task.id}])
        digit = turn.text.strip()[:1]
        return float(digit.isdigit() and int(digit) % 2 == remainder)

    return play


def until(steps: int) -> FitConfig:
    """The same settings for both parts, but for the number of steps."""
    return FitConfig(
        steps=steps,
        learning_rate=1e-2,
        group=8,
        tasks_per_step=4,
        sampling=Sampling(max_tokens=1),
    )


async def train(curve: Curve) -> None:
    """Even digits, back, odd digits."""
    async with TrainingClient("tiny") as client:
        print("even digits")
        await Fit(client, SUMS, prefers(0), until(FIRST), trackers=[Curve()]).fit_async()
        await client.set_head(BACK_TO)
        print(f"odd digits, from {BACK_TO}")
        await Fit(client, SUMS, prefers(1), until(SECOND), trackers=[curve]).fit_async()
        for checkpoint in await client.checkpoints():
            mark = ">" if checkpoint.is_active else " "
            parent = checkpoint.prev_model_checkpoint_id or "base"
            print(f"{mark} {checkpoint.name}  from {parent}  reward {checkpoint.mean_reward}")


if __name__ == "__main__":
    rewards = Curve()
    asyncio.run(train(rewards))
    rewards.end()
