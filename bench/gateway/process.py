"""The gateway as a process on a real API server, in front of pods on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import aiohttp
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.gateway.process import apply, served, signing_key, started, trained, until

from espalier.core.names import GATEWAY_AUDIENCE

NAMESPACE, SYSTEM = "bench", "bench-system"
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

    def waited_seconds(self) -> float:
        """Time so far in which it could have run and had no core."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9

    def resident_mib(self) -> float:
        return resident_mib(self.pid)


@asynccontextmanager
async def gateway(
    server: ApiServer,
    digest: str,
    port: int,
    private_key: str,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Gateway]:
    """A gateway whose model ``arith`` serves a digest and trains at a port of this machine."""
    server.apply_crds()
    for namespace in (NAMESPACE, SYSTEM):
        server.create_namespace(namespace)
    server.kubectl(
        *("create", "clusterrolebinding", "bench", "--clusterrole=cluster-admin"),
        f"--serviceaccount={NAMESPACE}:default",
    )
    served(server, NAMESPACE, port, digest)
    trained(server, NAMESPACE, port)
    apply(server, SYSTEM, signing_key(private_key))
    token = server.kubectl(
        *("create", "token", "default", "-n", NAMESPACE, f"--audience={GATEWAY_AUDIENCE}")
    ).strip()
    ours = free_port()
    environment = {
        "KUBECONFIG": str(server.kubeconfig),
        "POD_NAMESPACE": SYSTEM,
        "ESPALIER_NAMESPACES": NAMESPACE,
        "ESPALIER_PORT": str(ours),
        "ESPALIER_METRICS_PORT": str(free_port()),
        **settings,
    }
    url = f"http://127.0.0.1:{ours}"
    # Into a file: a process of the bench that reads the log is one that measures less well.
    with tempfile.TemporaryFile() as log:
        async with started(environment, log) as process, aiohttp.ClientSession() as session:
            await until(session, f"{url}/readyz", '{"unready": ""}')
            yield Gateway(url, token, process.pid)
            process.terminate()
            await process.wait()


def pod_uid(server: ApiServer, role: str) -> str:
    """The uid of the one pod of a role: what stands behind its port answers to tokens for it."""
    selector = f"--selector=espalier.dev/role={role}"
    path = "jsonpath={.items[0].metadata.uid}"
    return server.kubectl("get", "pods", "-n", NAMESPACE, selector, "-o", path)


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
