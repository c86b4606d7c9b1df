"""Rewards that compare texts: exact, numeric, boxed, regex. Pure.

An expression may take for ever on a text that was made for it: these run in the scoring worker,
whose children are stopped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from espalier.rewards.extraction import Extraction, extract

How = Literal["exact", "numeric", "boxed", "regex"]
# Decimal would keep a million digits.
_NUMBER_CHARACTERS = 64
_BRACES = re.compile(r"\\boxed\{|[{}]")


@dataclass(frozen=True)
class TextReward:
    """How texts are compared.

    Attributes:
        extraction: what exact and numeric take for the answer of a completion.
        tolerance: of numeric.
        pattern, group: of regex.
    """

    how: How
    extraction: Extraction = "AnswerTag"
    tolerance: Decimal = Decimal(0)
    pattern: str = ""
    group: int | None = None

    @property
    def needs_answer(self) -> bool:
        """Whether it compares with the task's answer."""
        return self.how != "regex" or self.group is not None

    def score(self, expected: str, completion: str) -> float:
        """1 or 0.

        Raises:
            ValueError: numeric, and the expected answer is no number.
        """
        return float(self._holds(expected.strip(), completion))

    def _holds(self, expected: str, completion: str) -> bool:
        if self.how == "regex":
            found = re.search(self.pattern, completion)
            if found is None or self.group is None:
                return found is not None
            return (found[self.group] or "").strip() == expected
        if self.how == "boxed":
            inner = last_boxed(completion)
            return inner is not None and _plain(inner) == _plain(expected)
        answer = extract(self.extraction, completion)
        if answer is None:
            return False
        return self._near(answer, expected) if self.how == "numeric" else answer == expected

    def _near(self, answer: str, expected: str) -> bool:
        wanted, given = number(expected), number(answer)
        if wanted is None:
            raise ValueError(f"the task's answer {expected[:40]!r} is no number")
        return given is not None and abs(given - wanted) <= self.tolerance


def number(text: str) -> Decimal | None:
    """The finite number that a text is, thousands separators and a dollar sign aside."""
    plain = text.strip().removeprefix("$").replace(",", "").replace("−", "-")
    if not plain or len(plain) > _NUMBER_CHARACTERS:
        return None
    try:
        found = Decimal(plain)
    except InvalidOperation:
        return None
    # An exponent of a million digits makes the subtraction as long.
    return found if found.is_finite() and abs(found.adjusted()) <= 400 else None


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` that is closed holds, braces in it being paired."""
    last: tuple[int, int] | None = None
    opened: list[int | None] = []
    # In one pass: one that looks for the end of each of many open boxes takes hours.
    for found in _BRACES.finditer(text):
        if found[0] != "}":
            opened.append(found.end() if found[0] != "{" else None)
        elif opened:
            begin = opened.pop()
            if begin is not None and (last is None or begin > last[0]):
                last = begin, found.start()
    return text[slice(*last)] if last is not None else None


def _plain(text: str) -> str:
    return re.sub(r"[\s$]", "", text)
