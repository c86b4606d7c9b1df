"""A change of mind: the reward was wrong, so the head goes back and training branches there.

First large digits are rewarded. Then it should have been small ones: instead of unlearning, the
head moves back to an early checkpoint, and a branch grows from it under the new reward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from curve import Curve
from sums import SUMS, Sum

from espalier import Fit, FitConfig, Sampling, Session, TrainingClient

FIRST, SECOND, BACK_TO = 4, 16, "tiny-000001"


def prefers(wanted: int) -> Callable[[Sum, Session], Awaitable[float]]:
    """A rollout that is rewarded for a digit near this one."""

    async def play(task: Sum, session: Session) -> float:
        turn = await session.sample([{"role": "user", "content": task.id}])
        digit = turn.text.strip()[:1]
        return 1.0 - abs(int(digit) - wanted) / 9 if digit.isdigit() else 0.0

    return play


def until(steps: int) -> FitConfig:
    """The same settings for both parts, but for the number of steps."""
    return FitConfig(
        steps=steps,
        learning_rate=4e-3,
        group=16,
        tasks_per_step=4,
        sampling=Sampling(max_tokens=1),
    )


async def train(curve: Curve) -> None:
    """Large digits, back, small digits."""
    async with TrainingClient("tiny") as client:
        print("large digits")
        await Fit(client, SUMS, prefers(9), until(FIRST), trackers=[Curve()]).fit_async()
        await client.set_head(BACK_TO)
        print(f"small digits, from {BACK_TO}")
        await Fit(client, SUMS, prefers(0), until(SECOND), trackers=[curve]).fit_async()
        for checkpoint in await client.checkpoints():
            mark = ">" if checkpoint.is_active else " "
            parent = checkpoint.prev_model_checkpoint_id or "base"
            print(f"{mark} {checkpoint.name}  from {parent}  reward {checkpoint.mean_reward}")


if __name__ == "__main__":
    rewards = Curve()
    asyncio.run(train(rewards))
    rewards.end()
