"""What the last run of the tests took, by folder: the table in docs/developing/test-times.md.

``python -m dev.test_table`` reads out/junit.xml and prints Markdown; ``--write`` puts it into
that page, with the tests that carry the marker ``exhaustive``, which pytest collects for it.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
JUNIT = ROOT / "out" / "junit.xml"
PAGE = ROOT / "docs" / "developing" / "test-times.md"
BEGIN, END = "<!-- begin: python -m dev.test_table --write -->", "<!-- end -->"
SLOWEST = 15
COLLECT_SECONDS = 300


@dataclass(frozen=True)
class Case:
    """One test of a run. ``file``: its path; ``seconds``: with what it set up, and tore down."""

    file: str
    name: str
    seconds: float
    skipped: bool
    failed: bool

    @property
    def folder(self) -> str:
        return self.file.rpartition("/")[0]


def cases(junit: ElementTree.Element) -> Iterator[Case]:
    """The tests of a junit report."""
    for case in junit.iter("testcase"):
        yield Case(
            file=_file(case.attrib["classname"]),
            name=case.attrib["name"],
            seconds=float(case.attrib["time"]),
            skipped=case.find("skipped") is not None,
            failed=case.find("failure") is not None or case.find("error") is not None,
        )


def _file(classname: str) -> str:
    """The path of a test's file: ``tests.core.test_head``, with a class behind it if it has one."""
    parts = classname.split(".")
    end = next((n for n, part in enumerate(parts) if part.startswith("test_")), len(parts) - 1)
    return "/".join(parts[: end + 1]) + ".py"


def by_folder(found: Sequence[Case]) -> str:
    folders = collections.defaultdict(list)
    for case in found:
        folders[case.folder].append(case)
    lines = ["| folder | tests | seconds | skipped | failed |", "|---|---:|---:|---:|---:|"]
    lines += [_row(f"`{folder}`", of) for folder, of in sorted(folders.items())]
    return "\n".join([*lines, _row("all, one after another", found)])


def _row(name: str, of: Sequence[Case]) -> str:
    seconds = sum(case.seconds for case in of)
    skipped, failed = sum(case.skipped for case in of), sum(case.failed for case in of)
    return f"| {name} | {len(of)} | {seconds:.0f} | {skipped} | {failed} |"


def slowest(found: Sequence[Case]) -> str:
    lines = ["| seconds | test |", "|---:|---|"]
    for case in sorted(found, key=lambda case: -case.seconds)[:SLOWEST]:
        lines.append(f"| {case.seconds:.0f} | `{case.file}::{case.name}` |")
    return "\n".join(lines)


def exhaustive() -> str:
    """The tests that only `make test-all` runs, with how many cases each has there."""
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "exhaustive")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=COLLECT_SECONDS, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"cannot collect the tests marked exhaustive:\n{done.stdout[-3000:]}")
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    counts = collections.Counter(line.split("[")[0] for line in ids)
    lines = ["| test | cases |", "|---|---:|"]
    return "\n".join([*lines, *(f"| `{name}` | {count} |" for name, count in counts.items())])


def written(page: str, body: str) -> str:
    """A page with what is between the marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE} has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def last_run() -> str:
    """How long it took, its tests by folder, and the slowest of them."""
    if not JUNIT.exists():
        return f"No run is recorded: {JUNIT.relative_to(ROOT)} is missing."
    root = ElementTree.parse(JUNIT).getroot()
    suite, found = next(root.iter("testsuite")), list(cases(root))
    took = f"{float(suite.attrib['time']) / 60:.1f} minutes on {suite.attrib['timestamp'][:10]}"
    return f"{took}\n\n{by_folder(found)}\n\nThe slowest:\n\n{slowest(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the last run of the tests took")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    if parser.parse_args().write:
        body = f"{last_run()}\n\n## Only in `make test-all`\n\n{exhaustive()}"
        PAGE.write_text(written(PAGE.read_text(), body))
    else:
        print(last_run())


if __name__ == "__main__":
    main()
