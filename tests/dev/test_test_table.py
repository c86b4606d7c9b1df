"""The table of what a run took, from the report that pytest leaves."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from dev import test_table as table

REPORT = """
<testsuites><testsuite name="pytest" time="70" timestamp="2026-01-01T00:00:00">
 <testcase classname="tests.core.test_head" name="test_a[x.y]" time="0.25"/>
 <testcase classname="tests.core.test_drawn_tree" name="test_b" time="1.25">
  <failure message="no"/></testcase>
 <testcase classname="tests.e2e.test_01_train" name="test_c" time="60">
  <skipped message=""/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def cases() -> list[table.Case]:
    return list(table.cases(ElementTree.fromstring(REPORT)))


def test_a_folder_has_its_tests_seconds_and_what_was_skipped_or_failed(
    cases: list[table.Case],
) -> None:
    assert table.by_folder(cases).splitlines()[2:] == [
        "| `tests/core` | 2 | 2 | 0 | 1 |",
        "| `tests/e2e` | 1 | 60 | 1 | 0 |",
        "| all, one after another | 3 | 62 | 1 | 1 |",
    ]


def test_the_slowest_come_first_by_the_name_that_pytest_takes(cases: list[table.Case]) -> None:
    lines = table.slowest(cases).splitlines()[2:]
    assert lines[0] == "| 60 | `tests/e2e/test_01_train.py::test_c` |"
    assert lines[2] == "| 0 | `tests/core/test_head.py::test_a[x.y]` |"


def test_what_is_written_by_hand_stays() -> None:
    page = f"# Title\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    assert table.written(page, "new") == f"# Title\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    with pytest.raises(SystemExit, match="has no lines"):
        table.written("# Title\n", "new")


def test_a_class_of_tests_is_no_folder() -> None:
    junit = ElementTree.fromstring(
        '<testsuite><testcase classname="tests.core.test_head.TestPin" name="test_a" time="1"/>'
        "</testsuite>"
    )
    (case,) = table.cases(junit)
    assert (case.file, case.folder) == ("tests/core/test_head.py", "tests/core")
