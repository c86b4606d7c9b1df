"""Every reason that the trainer gives is explained to those who operate it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import espalier.trainer

SOURCES = Path(espalier.trainer.__file__).parent
DOCUMENT = SOURCES.parents[2] / "docs" / "reference" / "errors.md"
# Where the reason stands among the arguments of what carries one.
POSITION = {"CommandError": 1, "UserMistakeError": 0, "padded": 0}


def reasons() -> set[str]:
    found = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= set(_of_call(node)) | set(_of_table(node))
    return found


def _of_call(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    at = POSITION.get(name)
    carriers = [node.args[at]] if at is not None and len(node.args) > at else []
    carriers += [k.value for k in node.keywords if k.arg == "reason" and name == "Problem"]
    for carrier in carriers:
        # A choice between two is an expression, whose condition may hold other texts.
        parts = [carrier.body, carrier.orelse] if isinstance(carrier, ast.IfExp) else [carrier]
        for part in parts:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value


def _of_table(node: ast.AST) -> Iterator[str]:
    """The faults of a volume are looked up by errno."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from re.findall(r"^Volume[A-Z][a-zA-Z]+$", node.value)


def test_every_reason_has_a_row_with_meaning_and_remedy() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    explained = set()
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if all(cells[1:]):
            explained |= set(re.findall(r"`([A-Z][A-Za-z]+)`", " ".join(cells[:2])))
    given = reasons()
    # The walk finds what it should: one of each kind.
    assert {"NoGradients", "PickleRefused", "EngineStuck", "UnknownFamily", "VolumeFull"} <= given
    assert not given - explained
