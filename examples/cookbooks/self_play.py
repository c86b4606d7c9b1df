"""Self-play: one model plays both sides of a game, and both sides are trained.

The race to ten: by turns a player adds 1, 2 or 3 to the sum; who reaches 10 wins. An illegal move
ends the game. Rewards: 1 for winning, 0.5 for losing, 0 for an illegal move, and 0.5 for the side
that it spared. Each side is a group of its own: what counts is doing better than others who stood
in the same place.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field

from curve import Curve

from espalier import Completion, Rollout, TrainingClient

STEPS, GAMES, GOAL = 15, 32, 10
# At first a legal move is luck: batches that are played for a step until some game differs.
BATCHES = 8
SIDES = ("first", "second")


@dataclass
class Match:
    """One game and what both sides said."""

    sides: list[Rollout]
    total: int = 0
    turn: int = 0
    over: bool = False
    legal: bool = field(default=True)

    def say(self, turn: Completion) -> None:
        """The move of the side whose turn it is."""
        mine, other = self.sides[self.turn], self.sides[1 - self.turn]
        mine.turns.append(turn)
        move = turn.text.strip()[:1]
        if move not in ("1", "2", "3") or self.total + int(move) > GOAL:
            self.over, self.legal = True, False
            mine.reward, other.reward = 0.0, 0.5
            return
        self.total += int(move)
        if self.total == GOAL:
            self.over = True
            mine.reward, other.reward = 1.0, 0.5
        self.turn = 1 - self.turn


async def played(client: TrainingClient, groups: list[str], index: int) -> Match:
    """A game from start to end."""
    sides = [Rollout(side, index, group) for side, group in zip(SIDES, groups, strict=True)]
    match = Match(sides)
    while not match.over:
        state = [{"role": "user", "content": f"{match.total}"}]
        (turn,) = await client.sample(state, max_tokens=1)
        match.say(turn)
    return match


def differ(said: list[Rollout], group: str) -> bool:
    """Whether a side did better in some games than in others: only then is there a gradient."""
    return len({side.reward for side in said if side.group_id == group}) > 1


async def batch(client: TrainingClient) -> tuple[list[Match], list[Rollout]]:
    """A batch of games, and what there is to learn from it: nothing if all batches were alike."""
    matches: list[Match] = []
    for _ in range(BATCHES):
        groups = [uuid.uuid4().hex for _ in SIDES]
        matches = await asyncio.gather(*(played(client, groups, i) for i in range(GAMES)))
        # A side that never got to move has said nothing to learn from.
        said = [side for match in matches for side in match.sides if side.turns]
        if any(differ(said, group) for group in groups):
            return matches, said
    return matches, []


async def train(curve: Curve) -> None:
    """Trains on all that both sides said."""
    async with TrainingClient("tiny") as client:
        for step in range(STEPS):
            matches, said = await batch(client)
            rewards = [side.reward for match in matches for side in match.sides]
            mean = sum(reward or 0.0 for reward in rewards) / len(rewards)
            legal = sum(match.legal for match in matches) / len(matches)
            metrics = {"rollout/reward/mean": mean, "game/legal_fraction": legal}
            curve.log(step + 1, metrics)
            if not said:
                print("no game differs from the others: nothing is left to learn")
                break
            await client.forward_backward(said, loss_fn="ppo")
            await client.optim_step(learning_rate=1e-2, metrics=metrics)


if __name__ == "__main__":
    shown = Curve()
    asyncio.run(train(shown))
    shown.end()
