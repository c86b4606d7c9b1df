"""Guess a number from 0 to 15: the model guesses, and is told whether it is higher or lower.

It runs in a container of its own and holds no token: every turn is sampled by the runner.
"""

from __future__ import annotations

import random
import re
from typing import Any

MOST, GUESSES = 15, 4


def tasks(seed: int, size: int) -> list[dict[str, Any]]:
    """Numbers by the seed; a task may hold whatever JSON can say."""
    draw = random.Random(seed)
    question = f"Guess a number from 0 to {MOST}. Answer with a number."
    return [{"prompt": question, "number": draw.randint(0, MOST)} for _ in range(size)]


async def rollout(task: dict[str, Any], session: Any) -> float:
    """1 for the number at the first guess, less for each further one, and more than 0.5 for any.

    A number that is not found is worth up to 0.5, by how near the nearest guess came: without that
    a model that seldom finds one would learn little.
    """
    number, nearest = task["number"], MOST
    said = task["prompt"]
    for guess in range(GUESSES):
        turn = await session.say(said)
        found = re.search(r"\d{1,3}", turn.text)
        if found is not None:
            nearest = min(nearest, abs(int(found[0]) - number))
        if nearest == 0:
            session.stop("done")
            return 1 - 0.5 * guess / GUESSES
        said = hint(found, number)
    session.stop("max_steps")
    return 0.5 * (1 - nearest / MOST)


def hint(found: Any, number: int) -> str:
    """What the model is told of a guess."""
    if found is None:
        return "That is no number."
    return "Higher." if int(found[0]) < number else "Lower."
