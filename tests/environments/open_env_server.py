"""A counting game as an OpenEnv server: ``python open_env_server.py PORT``, with openenv.

Run by the interpreter of an environment that has the package; nothing of ours is imported.
"""

# mypy: ignore-errors
from __future__ import annotations

import os
import sys
import time

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Say(Action):
    message: str


class Told(Observation):
    text: str


class Counting(Environment):
    """Say the next number; three in a row end the episode."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = State(episode_id="e", step_count=0)

    def reset(self, seed=None, episode_id=None, begin=0, **more):
        self.next, self.right = begin + seed % 10, 0
        return Told(text=f"{self.next} is next")

    def step(self, action, timeout_s=None, **more):
        if action.message == "die":
            os._exit(3)
        if action.message == "hang":
            time.sleep(3600)
        if action.message == "raise":
            raise ValueError("no such move")
        right = action.message == str(self.next)
        self.next += right
        self.right += right
        return Told(text=f"{self.next} is next", reward=float(right) / 3, done=self.right == 3)

    @property
    def state(self):
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Counting, Say, Told, max_concurrent_envs=2)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
