"""Sums of two digits, graded by how near the answer is."""

from __future__ import annotations

from dataclasses import dataclass

from espalier import Session

FARTHEST = 5


@dataclass(frozen=True)
class Sum:
    """``a+b``."""

    a: int
    b: int

    @property
    def id(self) -> str:
        """The question."""
        return f"{self.a}+{self.b}"

    def reward(self, answer: str) -> float:
        """1 for the sum, less the farther away, 0 for what is no number."""
        digit = answer.strip()[:1]
        if not digit.isdigit():
            return 0.0
        return 1.0 - min(1.0, abs(int(digit) - self.a - self.b) / FARTHEST)


SUMS = [Sum(a, b) for a in range(1, 5) for b in range(1, 5)]


async def answer(task: Sum, session: Session) -> float:
    """One question, one answer."""
    turn = await session.sample([{"role": "user", "content": task.id}])
    with session.phase("grading"):
        return task.reward(turn.text)
