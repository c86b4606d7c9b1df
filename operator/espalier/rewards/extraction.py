"""From a completion to the answer that is scored. Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

Extraction = Literal["AnswerTag", "LastNumber", "Whole"]

_OPENS, _CLOSES = "<answer>", "</answer>"
# A sign counts only where no operand stands before it: "3-1" ends in 1, "= -1" in -1.
_NUMBER = re.compile(r"(?:(?<![\w.)])[-−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def extract(mode: Extraction, completion: str) -> str | None:
    """The answer in a completion, None where there is none.

    AnswerTag: the text of the last ``<answer>`` element. LastNumber: the last number, without
    thousands separators. Whole: the text without surrounding blanks.
    """
    if mode == "AnswerTag":
        return _last_element(completion)
    if mode == "LastNumber":
        numbers = _NUMBER.findall(completion)
        return numbers[-1].replace(",", "").replace("−", "-") if numbers else None
    return completion.strip() or None


def _last_element(text: str) -> str | None:
    # Not by an expression: one that begins anew at each of many open tags takes hours.
    found, place = None, text.find(_OPENS)
    while place >= 0:
        begin = place + len(_OPENS)
        end = text.find(_CLOSES, begin)
        if end < 0:
            break
        found, place = text[begin:end].strip(), text.find(_OPENS, end + len(_CLOSES))
    return found


def is_number(text: str) -> bool:
    """True for what LastNumber could extract."""
    return _NUMBER.fullmatch(text) is not None


def matches(mode: Extraction, answer: str | None, expected: str) -> bool:
    """Whether an extracted answer is the expected one: as numbers for LastNumber, else as text."""
    if answer is None:
        return False
    if mode == "LastNumber":
        return Decimal(answer) == Decimal(expected.replace(",", "").replace("−", "-"))
    return answer == expected.strip()
