"""An operator as a process on a real API server, and what it costs."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from dev.apiserver import ApiServer
from dev.ports import free_port

TICKS = os.sysconf("SC_CLK_TCK")
# Where the operator itself is; what it serves is another.
SYSTEM = "espalier-system"
QUIET_SECONDS = 3.0
# Each reading costs the operator some CPU itself.
POLL_SECONDS = 1.0
LIMIT_SECONDS = 900.0
_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """What the process had used and done by then; ``seconds`` is the monotonic clock."""

    seconds: float
    cpu_seconds: float
    writes: float
    reconciles: float


class OperatorProcess:
    """A running operator."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, started: float) -> None:
        self._process = process
        self._url = f"http://127.0.0.1:{port}/metrics"
        self.started = started

    async def settled(self) -> Reading:
        """The first reading after which nothing was done for QUIET_SECONDS."""
        end = time.monotonic() + LIMIT_SECONDS
        last: Reading | None = None
        while time.monotonic() < end:
            now = await self._read()
            if (
                last is None
                or now is None
                or (now.writes, now.reconciles) != (last.writes, last.reconciles)
            ):
                last = now
            elif now.seconds - last.seconds > QUIET_SECONDS and now.reconciles:
                return last
            await asyncio.sleep(POLL_SECONDS)
        raise SystemExit(f"the operator did not settle within {LIMIT_SECONDS:.0f} s")

    def peak_mib(self) -> float:
        """The largest resident size so far, in MiB."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(row for row in text.splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    async def _read(self) -> Reading | None:
        if self._process.returncode is not None:
            raise SystemExit(f"the operator ended with {self._process.returncode}")
        cpu = self._cpu_seconds()
        try:
            async with aiohttp.ClientSession() as session, session.get(self._url) as answer:
                found = _SAMPLE.findall(await answer.text())
        except aiohttp.ClientError:
            return None
        writes = _total(found, "espalier_apiserver_requests_total", 'verb="PATCH"')
        writes += _total(found, "espalier_apiserver_requests_total", 'verb="POST"')
        return Reading(time.monotonic(), cpu, writes, _total(found, "espalier_reconcile_total"))


def _total(found: list[tuple[str, str, str]], name: str, label: str = "") -> float:
    return sum(
        float(value) for metric, labels, value in found if metric == name and label in labels
    )


@dataclass(frozen=True)
class ColdStart:
    """From the process to the last pass; the peak in MiB."""

    seconds: float
    cpu_seconds: float
    writes: float
    peak_mib: float

    def __str__(self) -> str:
        return (
            f"{self.seconds:.1f} s, {self.cpu_seconds:.1f} s of CPU, {self.writes:.0f} writes (1 "
            f"is the Lease's or the Secret's), peak resident {self.peak_mib:.0f} MiB"
        )


async def cold_start(kubeconfig: Path, namespace: str, tree: Path | None = None) -> ColdStart:
    """Starts an operator over what there is, and ends it once it has looked at all."""
    async with operator(kubeconfig, namespace, tree) as running:
        done = await running.settled()
        seconds = done.seconds - running.started
        return ColdStart(seconds, done.cpu_seconds, done.writes, running.peak_mib())


@contextmanager
def api_server(*namespaces: str) -> Iterator[ApiServer]:
    """An API server with our CRDs, which this process and the operators it starts talk to."""
    with ApiServer() as server:
        server.apply_crds()
        for namespace in (*namespaces, SYSTEM):
            server.create_namespace(namespace)
        os.environ["KUBECONFIG"] = str(server.kubeconfig)
        yield server


@asynccontextmanager
async def operator(
    kubeconfig: Path, namespace: str, tree: Path | None = None
) -> AsyncIterator[OperatorProcess]:
    """An operator for one namespace, until the block ends; of another working tree if told so."""
    port = free_port()
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "POD_NAMESPACE": SYSTEM,
        "ESPALIER_NAMESPACES": namespace,
        "POD_NAME": f"operator-{port}",
        "ESPALIER_IMAGE_TRAINER": "trainer:1",
        "ESPALIER_IMAGE_ROLLOUT": "rollout:1",
        "ESPALIER_IMAGE_RUNNER": "runner:1",
        "ESPALIER_GATEWAY_URL": "http://gateway",
        "ESPALIER_HEALTH_PORT": str(port),
    }
    if tree is not None:
        environment["PYTHONPATH"] = str(tree / "operator")
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "espalier.controllers"), env=environment
    )
    try:
        yield OperatorProcess(process, port, started)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
