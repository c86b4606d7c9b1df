"""The sums of examples/arithmetic, and what an answer is worth: the same for every side."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espalier.rewards.extraction import extract, matches

EXAMPLE = Path(__file__).parents[2] / "examples" / "arithmetic"
# As in run.yaml: this many are trained on, the rest is held out.
TRAINED = 320
# Tokens of an answer, and of a story.
ANSWER = 16
SHORTEST, LONGEST = 6, 256


@dataclass(frozen=True)
class Sum:
    """A question and its answer, such as ``What is 3 + 4?`` and ``7``."""

    id: str
    question: str
    answer: str

    @property
    def prompt(self) -> list[dict[str, str]]:
        """As a chat."""
        content = f"{self.question} Answer with just the number."
        return [{"role": "user", "content": content}]

    def reward(self, text: str) -> float:
        """1 if the last number of the text is the answer, else 0."""
        return float(matches("LastNumber", extract("LastNumber", text), self.answer))


def story_tokens(one: Sum, index: int) -> int:
    """How long the story of a sum's rollout is, with a heavy tail: equal for every side.

    Lengths are Pareto's with exponent 0.9: half are below 13 tokens, one in 13 above 100.
    """
    drawn = random.Random(f"{one.id}/{index}").paretovariate(0.9)
    return min(int(SHORTEST * drawn), LONGEST)


def trained(seed: int) -> list[Sum]:
    """The sums that a run with this seed trains on, in its order."""
    chosen = _shuffled()[:TRAINED]
    random.Random(seed).shuffle(chosen)
    return chosen


def held_out() -> list[Sum]:
    """The sums that no run trains on."""
    return _shuffled()[TRAINED:]


def _shuffled() -> list[Sum]:
    manifest: dict[str, Any] = yaml.safe_load((EXAMPLE / "tasks.yaml").read_text())
    rows = [json.loads(line) for line in manifest["data"]["tasks.jsonl"].splitlines()]
    sums = [Sum(row["prompt"], row["prompt"], row["answer"]) for row in rows]
    random.Random(0).shuffle(sums)
    return sums
