"""Argo CD core and Flux's kustomize-controller as plain processes beside an API server.

Both run as in a cluster, without their user interfaces: Argo CD's application-controller and
repo-server with a Redis in memory, and Flux's kustomize-controller alone. Built by
``dev/tools.sh gitops``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from dev.apiserver import BINARIES, ROOT, end_processes
from dev.crds import Cluster, wait_until_established
from dev.ports import free_port

MANIFESTS = BINARIES.parent / "gitops"
ARGOCD_NAMESPACE = "argocd"
FLUX_NAMESPACE = "flux-system"
HEALTH_CHECKS = ROOT / "gitops/argocd/argocd-cm.yaml"


class GitOpsError(Exception):
    """A part is not built or ended too early; the message says which and what it wrote."""


class Controllers:
    """Processes with a log each, ended in reverse order, whose files go with them."""

    # What dev/tools.sh builds them by.
    tools = "gitops"

    def __init__(self, server: Cluster) -> None:
        self.server = server
        self.directory = Path(tempfile.mkdtemp(prefix="espalier-gitops-"))
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def log(self, name: str) -> Path:
        """What a process wrote."""
        return self.directory / f"{name}.log"

    def _begin(self) -> None:
        raise NotImplementedError

    def _start(self, name: str, binary: str, *arguments: str, **environment: str) -> None:
        path = BINARIES / binary
        if not path.exists():
            raise GitOpsError(f"{binary} is not in {BINARIES}: run dev/tools.sh {self.tools}")
        # setpriv ends the child when we are killed; a killed test run leaves nothing behind.
        command = ["setpriv", "--pdeathsig", "KILL", str(path), *arguments]
        environment = {
            **os.environ,
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "KUBECONFIG": str(self.server.kubeconfig),
            # Two cores are shared with the API server.
            "GOMAXPROCS": "2",
            **environment,
        }
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.directory, env=environment
            )
        self._processes.append((name, process))

    def _wait_for_port(self, name: str, port: int) -> None:
        def listens() -> bool:
            self.check()
            with socket.socket() as caller:
                return caller.connect_ex(("127.0.0.1", port)) == 0

        self.server.wait_for(f"{name} to listen", listens)

    def check(self) -> None:
        """Raises GitOpsError if a process has ended by itself."""
        for name, process in self._processes:
            if process.poll() is not None:
                text = self.log(name).read_text(errors="replace")[-2000:]
                raise GitOpsError(f"{name} ended with {process.returncode}: {text}")

    def _end(self) -> None:
        end_processes(self._processes)
        shutil.rmtree(self.directory, ignore_errors=True)


class ArgoCd(Controllers):
    """Argo CD core, with Espalier's health checks; it looks at Git when asked, or every 10 s."""

    def _begin(self) -> None:
        manifests = MANIFESTS / "argocd"
        kubectl = self.server.kubectl
        create_namespace(kubectl, ARGOCD_NAMESPACE)
        crds = ("application-crd.yaml", "appproject-crd.yaml")
        # Server-side: the Application's schema is too large for kubectl's annotation.
        kubectl("apply", "--server-side", *(f"--filename={manifests / name}" for name in crds))
        wait_until_established(self.server, *(f"-f={manifests / name}" for name in crds))
        kubectl("apply", "-n", ARGOCD_NAMESPACE, "-k", str(manifests / "config"))
        patch = ("patch", "configmap", "argocd-cm", f"--patch-file={HEALTH_CHECKS}")
        kubectl("-n", ARGOCD_NAMESPACE, *patch)
        self._start_processes()

    def _start_processes(self) -> None:
        redis, repositories = free_port(), free_port()
        environment = {
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_TLS_DATA_PATH": str(self.directory / "tls"),
            "ARGOCD_SSH_DATA_PATH": str(self.directory / "ssh"),
            "ARGOCD_REDIS_MAX_RETRIES": "3",
            # file:// repositories belong to whoever runs the tests.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        self._start("redis", "argocd", "redis", f"127.0.0.1:{redis}")
        self._wait_for_port("redis", redis)
        shared = (f"--redis=127.0.0.1:{redis}", f"--kubeconfig={self.server.kubeconfig}")
        namespace = f"--namespace={ARGOCD_NAMESPACE}"
        self._start(
            "repo-server",
            "argocd",
            "repo-server",
            shared[0],
            f"--port={repositories}",
            f"--metrics-port={free_port()}",
            "--disable-tls",
            # How soon a new commit of a branch is seen.
            "--revision-cache-expiration=1s",
            **environment,
        )
        self._wait_for_port("repo-server", repositories)
        self._start(
            "application-controller",
            "argocd",
            "application-controller",
            *shared,
            namespace,
            f"--repo-server=127.0.0.1:{repositories}",
            "--repo-server-plaintext",
            f"--metrics-port={free_port()}",
            "--app-resync=10",
            "--app-resync-jitter=0",
            "--self-heal-backoff-timeout-seconds=1",
            "--self-heal-backoff-cap-seconds=2",
            HOSTNAME="controller-0",
            **environment,
        )


class Flux(Controllers):
    """Flux's kustomize-controller; artifacts of Git revisions come from the tests."""

    def _begin(self) -> None:
        kubectl = self.server.kubectl
        create_namespace(kubectl, FLUX_NAMESPACE)
        crds = [*MANIFESTS.glob("flux/*.yaml"), *MANIFESTS.glob("flux-source/*.yaml")]
        if not crds:
            raise GitOpsError(f"no CRDs of Flux in {MANIFESTS}: run dev/tools.sh gitops")
        kubectl("apply", "--server-side", *(f"--filename={crd}" for crd in crds))
        wait_until_established(self.server, *(f"-f={crd}" for crd in crds))
        health = free_port()
        self._start(
            "kustomize-controller",
            "kustomize-controller",
            f"--metrics-addr=127.0.0.1:{free_port()}",
            f"--health-addr=127.0.0.1:{health}",
            "--events-addr=",
            "--watch-all-namespaces=true",
            "--requeue-dependency=1s",
            "--log-level=debug",
            RUNTIME_NAMESPACE=FLUX_NAMESPACE,
        )
        self._wait_for_port("kustomize-controller", health)


def create_namespace(kubectl: Callable[..., str], name: str) -> None:
    if not kubectl("get", "namespace", name, "--ignore-not-found", "-o", "name"):
        kubectl("create", "namespace", name)
