"""How an answer differs from the one that an earlier checkpoint gave to the same task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

from espalier.rollout_page.text import shown

# Comparing takes the square of it; a model may write anything.
WORDS_MOST = 1500
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def difference(before: str, after: str) -> str:
    """The two as one text of HTML, in which what went and what came are marked."""
    if before == after:
        return '<p class="note">the same answer</p>'
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    if max(len(old), len(new)) > WORDS_MOST:
        return f'<p class="note">not compared: an answer has more than {WORDS_MOST} words</p>'
    return f'<div dir="auto" class="text">{"".join(_marked(old, new))}</div>'


def _marked(old: list[str], new: list[str]) -> Iterator[str]:
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield shown("".join(old[a:b]))
            continue
        if b > a:
            yield f"<del>{shown(''.join(old[a:b]))}</del>"
        if d > c:
            yield f"<ins>{shown(''.join(new[c:d]))}</ins>"
