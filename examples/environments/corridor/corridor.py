"""A corridor as an OpenEnv server: walk left or right to the treasure, one pace a step.

There are as many paces as it takes at best, and each that comes nearer is worth its share of 1.
"""

from __future__ import annotations

import random
import re
import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

PLACES, FARTHEST, SESSIONS = 10, 3, 64


class Walk(Action):
    """What the model says: its first word left or right counts."""

    move: str


class Seen(Observation):
    """What the model is told."""

    text: str


class Corridor(Environment):
    """Start and treasure follow from the seed of the reset."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._place = self._treasure = self._distance = self._steps = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> Seen:
        """Puts both somewhere."""
        draw = random.Random(seed)
        self._distance = draw.randint(1, FARTHEST)
        self._treasure = draw.randint(self._distance, PLACES - 1 - self._distance)
        self._place = self._treasure + draw.choice((-1, 1)) * self._distance
        self._steps = 0
        return Seen(text=self._told())

    def step(self, action: Walk, timeout_s: float | None = None, **options: Any) -> Seen:
        """A pace; a text without a direction is none."""
        self._steps += 1
        before = abs(self._treasure - self._place)
        found = re.search(r"\b(left|right)\b", action.move.lower())
        if found is not None:
            place = self._place + (1 if found[1] == "right" else -1)
            self._place = min(max(place, 0), PLACES - 1)
        nearer = abs(self._treasure - self._place) < before
        done = self._steps == self._distance
        return Seen(text=self._told(), reward=nearer / self._distance, done=done)

    @property
    def state(self) -> State:
        """How many steps were taken."""
        return State(step_count=self._steps)

    def _told(self) -> str:
        return f"You are at {self._place}, the treasure is at {self._treasure}. Left or right?"


if __name__ == "__main__":
    app = create_fastapi_app(Corridor, Walk, Seen, max_concurrent_envs=SESSIONS)
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, host="0.0.0.0", port=port, log_level="warning")
