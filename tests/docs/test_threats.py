"""The pages of threats are honest: each row has a guard and a test that exists, or is open."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"
FINDINGS = ROOT / "docs" / "security-findings.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
HEAD = ["threat", "guard", "test"]


def rows(page: Path) -> list[list[str]]:
    """Threat, guard and test of each row."""
    found, inside = [], False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells == HEAD)
        if inside and cells != HEAD and set(line) - set("|- "):
            found.append(cells)
    return found


@cache
def functions_of(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


@pytest.mark.parametrize("row", [*rows(PAGE), *rows(FINDINGS)], ids=lambda row: row[0][:60])
def test_each_threat_has_a_guard_with_a_test_or_is_open(row: list[str]) -> None:
    threat, guard, test = row
    named = NAMED.findall(test)
    assert threat
    assert named or test.startswith("open: ")
    assert guard or test.startswith("open: ")
    for file, name in named:
        assert name in functions_of(file), f"{file} has no {name}"


def test_the_page_says_of_every_test_of_threats_what_it_is_for() -> None:
    text = PAGE.read_text()
    files = {path.name for path in (ROOT / "tests" / "security").glob("test_*.py")}
    assert [name for name in sorted(files) if f"tests/security/{name}" not in text] == []
    assert len(rows(PAGE)) > 40


def test_no_finding_and_no_attempt_is_left_out() -> None:
    named = [row[0].partition(":")[0] for row in rows(FINDINGS) if ":" in row[0]]
    attempts = [*map(str, range(1, 26))]
    assert named == [*(f"S{n}" for n in range(1, 26)), *(f"L{n}" for n in range(1, 10)), *attempts]
