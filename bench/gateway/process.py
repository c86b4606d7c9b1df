"""The gateway as a process on a real API server, in front of pods on this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from dev.apiserver import ApiServer, free_port
from tests.gateway.process import apply, manifests, signing_key, started, until
from tests.gateway.world import condition

from espalier.api.meta import API_VERSION

NAMESPACE = "bench"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Gateway:
    """A running gateway, and a token of one who may do everything."""

    url: str
    token: str
    pid: int

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def cpu_seconds(self) -> float:
        """User and system time so far; unlike wall time, nobody else's load is in it."""
        return cpu_seconds(self.pid)

    def resident_mib(self) -> float:
        return resident_mib(self.pid)


@asynccontextmanager
async def gateway(
    server: ApiServer, digest: str, port: int, private_key: str
) -> AsyncIterator[Gateway]:
    """A gateway whose model ``arith`` serves a digest and trains at a port of this machine."""
    server.apply_crds()
    server.create_namespace(NAMESPACE)
    server.kubectl(
        *("create", "clusterrolebinding", "bench", "--clusterrole=cluster-admin"),
        f"--serviceaccount={NAMESPACE}:default",
    )
    apply(server, NAMESPACE, *manifests(port, digest), *_training(port), signing_key(private_key))
    token = server.kubectl("create", "token", "default", "-n", NAMESPACE).strip()
    ours = free_port()
    environment = {
        "KUBECONFIG": str(server.kubeconfig),
        "POD_NAMESPACE": NAMESPACE,
        "ESPALIER_PORT": str(ours),
        "ESPALIER_METRICS_PORT": str(free_port()),
    }
    url = f"http://127.0.0.1:{ours}"
    async with started(environment) as process, aiohttp.ClientSession() as session:
        # Its log is read as it is written, or the pipe would fill.
        assert process.stderr is not None
        log = asyncio.create_task(process.stderr.read())
        await until(session, f"{url}/readyz", '{"unready": ""}')
        yield Gateway(url, token, process.pid)
        process.terminate()
        await process.wait()
        await log


def _training(port: int) -> list[dict[str, Any]]:
    """A client-driven run, and the pod of its trainer."""
    spec = {
        "modelRef": {"name": "arith"},
        "driver": "Client",
        "loss": {"name": "importance_sampling"},
        "learningRate": "1e-4",
        "steps": 1000,
    }
    labels = {
        "app.kubernetes.io/managed-by": "espalier",
        "espalier.dev/model": "arith",
        "espalier.dev/role": "trainer",
    }
    container = {"name": "main", "image": "x", "ports": [{"containerPort": port}]}
    address = {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    return [
        {
            "apiVersion": API_VERSION,
            "kind": "TrainingRun",
            "metadata": {"name": "arith"},
            "spec": spec,
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "arith-trainer-0", "labels": labels},
            "spec": {"containers": [container]},
            "status": {**address, "conditions": [condition("Ready", "True")]},
        },
    ]


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def load_average() -> str:
    """Says whether wall times of this run mean anything."""
    return f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
