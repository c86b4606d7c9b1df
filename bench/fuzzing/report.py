"""What came of hostile requests, as tables of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.security.fuzzing import Answered

# Lines of the page between which the tables stand.
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
FAITHFUL = "nothing of it"
# How often memory is told, besides before the first request.
READINGS = 5


@dataclass
class Result:
    """Of one part. Memory in MiB: before the first request, and after each lot."""

    name: str
    routes: int
    seed: int
    upstream: frozenset[int]
    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    changes: int = 0
    accepted: int = 0
    refused_again: int = 0

    @property
    def requests(self) -> int:
        return self.statuses.total()

    def count(self, answers: Iterable[Answered]) -> None:
        """Adds answers, and the faults among them with what was sent."""
        for answer in answers:
            self.statuses[answer.status] += 1
            for kind in answer.request.kinds or (FAITHFUL,):
                self.kinds[kind, answer.status // 100] += 1
            if fault := answer.fault(self.upstream):
                request = answer.request
                self.faults.append(
                    f"{self.name}: {fault}: {answer.status} {request.method} {request.path} "
                    f"{request.headers} {request.body[:600]!r}: {answer.body[:300]!r}"
                )


def tables(results: list[Result]) -> str:
    """Three tables: of the parts, of their statuses, of what was hostile."""
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    seeds = ", ".join(sorted({str(result.seed) for result in results}))
    lines = [
        f"{day}, seed {seeds}, by `bench/run.sh fuzzing`.",
        "",
        "| part | routes | requests | accepted | refused | faults "
        "| MiB before, and after each fifth | state |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        by: Counter[int] = Counter()
        for status, count in result.statuses.items():
            by[status // 100] += count
        last = len(result.memory) - 1
        read = (result.memory[last * n // READINGS] for n in range(READINGS + 1))
        memory = ", ".join(f"{mebibytes:.0f}" for mebibytes in read)
        lines.append(
            f"| {result.name} | {result.routes} | {result.requests:,} | {by[2] + by[3]:,} "
            f"| {by[4]:,} | {len(result.faults)} | {memory} | {_state(result)} |"
        )
    lines += ["", "| status | " + " | ".join(result.name for result in results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    for status in sorted({status for result in results for status in result.statuses}):
        counts = (f"{result.statuses[status]:,}" for result in results)
        lines.append(f"| {status} | " + " | ".join(counts) + " |")
    lines += [
        "",
        "What of a request was hostile; one may be so in several ways.",
        "",
        "| hostile | requests | 2xx, 3xx | 4xx | of pods behind the gateway |",
        "|---|---|---|---|---|",
    ]
    kinds: Counter[tuple[str, int]] = Counter()
    for result in results:
        kinds += result.kinds
    for kind in sorted({kind for kind, _ in kinds}):
        counts = [kinds[kind, 2] + kinds[kind, 3], kinds[kind, 4], kinds[kind, 5]]
        total = sum(count for (name, _), count in kinds.items() if name == kind)
        lines.append(f"| {kind} | {total:,} | " + " | ".join(f"{c:,}" for c in counts) + " |")
    return "\n".join(lines)


def _state(result: Result) -> str:
    again = f"unchanged by {result.refused_again:,} refused at once"
    return f"{again}, changed by {result.accepted:,} accepted" if result.changes else "unchanged"


def write(page: Path, text: str) -> None:
    """Puts the tables on the page, in place of the last ones."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
