"""Tables of plain text: columns in line, nothing drawn around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under their upper-case names, as kubectl prints them; empty for no rows."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [[name.upper() for name in names], *([str(row[n]) for n in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = ["   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)
