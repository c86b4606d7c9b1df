"""Every reason of a condition, or of an answer of gateway and sampler, is explained to users.

The trainer's reasons have rows with a remedy, which tests/trainer/test_reasons.py checks.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "operator" / "espalier"
REFERENCE = [ROOT / "docs" / "reference" / name for name in ("conditions.md", "errors.md")]
ROOMS = ("core", "controllers", "gateway", "sampler", "runner", "environments")
# Where the reason stands among the arguments of what carries one.
POSITION = {
    **{"stalled": 0, "reconciling": 0, "ready": 0, "not_ready": 0, "StoreError": 0},
    **{"UserError": 0, "WaitError": 0, "Fenced": 0, "Fault": 0, "Waiting": 0},
    **{"RefusalError": 1, "Finding": 2},
}


def reasons() -> set[str]:
    """The reasons that the code gives as plain text."""
    paths = [path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
    return {
        r for path in paths for node in ast.walk(ast.parse(path.read_text())) for r in _of(node)
    }


def _of(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    at = POSITION.get(getattr(node.func, "id", getattr(node.func, "attr", "")))
    carriers = [node.args[at]] if at is not None and len(node.args) > at else []
    carriers += [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
    for carrier in carriers:
        parts = [carrier.body, carrier.orelse] if isinstance(carrier, ast.IfExp) else [carrier]
        for part in parts:
            if isinstance(part, ast.Constant) and re.fullmatch(r"[A-Z]\w+", str(part.value)):
                yield str(part.value)


def test_every_reason_is_explained() -> None:
    given = reasons()
    # The walk finds what it should: one of each room.
    assert {"CheckpointNotFound", "NoActiveRun", "DigestMismatch", "PromptTooLong"} <= given
    explained = set(re.findall(r"`([A-Z]\w+)`", " ".join(p.read_text() for p in REFERENCE)))
    assert sorted(given - explained) == []
