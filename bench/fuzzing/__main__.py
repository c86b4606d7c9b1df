"""Sends hostile requests to real processes of gateway, trainer and sampler, and writes what came.

    PYTHONPATH=operator:. python -m bench.fuzzing [--requests 10000] [--parts gateway ...] [--write]

A half comes from schemathesis, the rest is our own list (``tests/security/hostile_requests.py``).
After every 500 the part's memory is read. What was refused is sent again, until all of it is
refused at once, and the state compared. Exits with 1 at a fault.
``--write`` puts the tables on docs/developing/fuzzing.md, which is of every part.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import aiohttp
from bench.fuzzing import openapi, report
from bench.fuzzing.drawn import ROOT, SEED, lots, of_schemathesis
from bench.fuzzing.parts import PARTS, Part
from bench.gateway.process import resident_mib
from tests.listening import family
from tests.security.fuzzing import told, unconnected
from tests.security.hostile_requests import Hostile

# A command that was refused for where training stood may be accepted now, and change that again.
PASSES = 8


def resident(part: Part) -> float:
    """Resident memory of the part's processes, in MiB."""
    return sum(resident_mib(process) for process in family(part.pid))


async def hostile(part: Part, made: list[Hostile], count: int) -> report.Result:
    """Sends them all, and looks at the part after each lot."""
    result = report.Result(part.name, len({*part.routes}), SEED, part.upstream)
    refused: list[Hostile] = []
    state = await part.state()
    result.memory.append(resident(part))
    async with aiohttp.ClientSession(connector=unconnected(), auto_decompress=False) as session:
        for lot in lots(part.routes, part.bodies, made, count):
            answers = await told(session, part.url, lot, part.headers)
            result.count(answers)
            now = await part.state()
            accepted = [a for a in answers if 200 <= a.status < 300 and part.writes(a)]
            result.changes += now != state
            result.accepted += len(accepted)
            state = now
            result.memory.append(resident(part))
            print(f"{part.name}: {result.requests} sent, {result.memory[-1]:.0f} MiB", flush=True)
            refused += [a.request for a in answers if a.status >= 400]
        await again(part, session, refused, result)
        async with session.get(f"{part.url}/healthz") as health:
            if health.status != 200:
                result.faults.append(f"its health is {health.status}")
    return result


async def again(
    part: Part, session: aiohttp.ClientSession, refused: list[Hostile], result: report.Result
) -> None:
    """Sends what was refused until all of it is refused at once: that may change nothing."""
    for _ in range(PASSES):
        before = await part.state()
        answers = await told(session, part.url, refused, part.headers)
        result.faults += [fault for a in answers if (fault := a.fault(part.upstream))]
        refused = [a.request for a in answers if a.status >= 400]
        if len(refused) == len(answers):
            result.refused_again = len(refused)
            if await part.state() != before:
                result.faults.append(f"{part.name}: refused requests changed its state")
            return
    result.faults.append(f"{part.name}: of what it refused it always accepts some")


async def run(parts: list[str], count: int) -> list[report.Result]:
    of_vllm = openapi.of_vllm()
    results = []
    for name in parts:
        with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder:
            scratch = Path(folder)
            async with PARTS[name](scratch) as part:
                document = openapi.document(part.routes, part.names, of_vllm, part.model)
                made = await asyncio.to_thread(of_schemathesis, document, count // 2, scratch)
                results.append(await hostile(part, made, count))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Sends hostile requests to real processes.")
    parser.add_argument("--requests", type=int, default=10_000, help="for each part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--write", action="store_true", help="write docs/developing/fuzzing.md")
    asked = parser.parse_args()
    if asked.write and {*asked.parts} != {*PARTS}:
        parser.error("--write: the page is of every part: leave out --parts")
    results = asyncio.run(run(asked.parts, asked.requests))
    text = report.tables(results)
    print(text)
    if asked.write:
        report.write(ROOT / "docs" / "developing" / "fuzzing.md", text)
    for fault in (fault for result in results for fault in result.faults):
        print(fault, file=sys.stderr)
    sys.exit(any(result.faults for result in results))


if __name__ == "__main__":
    main()
