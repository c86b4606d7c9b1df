"""A Kubernetes API server as plain processes: etcd, kube-apiserver, kube-controller-manager.

Ready in a few seconds on free loopback ports, gone without a trace afterwards. There are no nodes:
pods are created but never run. ``python dev/apiserver.py`` runs one until it is interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # started as a file, dev/ is on the path and its parent is not
    sys.path.insert(0, str(ROOT))

from dev.crds import wait_until_established  # noqa: E402
from dev.pki import Authority, kubeconfig, signing_pair  # noqa: E402
from dev.ports import free_port  # noqa: E402

BINARIES = Path(os.environ.get("ESPALIER_CACHE") or Path.home() / ".cache/espalier") / "bin"
CRDS = ROOT / "crds"
START_TIMEOUT_SECONDS = 180
STOP_TIMEOUT_SECONDS = 10
KUBECTL_TIMEOUT_SECONDS = 240
CALL_TIMEOUT_SECONDS = 20
SERVICE_RANGE = "10.96.0.0/16"
ISSUER = "https://kubernetes.default.svc.cluster.local"


class ApiServerError(Exception):
    """A process did not start, or kubectl failed; the message holds what it wrote."""


def binary(name: str) -> Path:
    path = BINARIES / name
    if not path.exists():
        raise ApiServerError(f"{name} is not in {BINARIES}: run dev/tools.sh apiserver")
    return path


def end_processes(processes: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    """Ends processes, the last started first, by force where they do not go; empties the list."""
    for _, process in reversed(processes):
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    processes.clear()


class ApiServer:
    """``with ApiServer() as server``: an admin kubeconfig, a URL and kubectl."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="espalier-apiserver-"))
        self.kubeconfig = self.directory / "admin.kubeconfig"
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._etcd = f"http://127.0.0.1:{free_port()}"
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> ApiServer:
        try:
            self._write_pki()
            self._start_etcd()
            self._start_apiserver()
            self.wait_for("kube-apiserver to be ready", self._is_ready)
            # Only now: the controller manager exits when RBAC is not there yet.
            self._start_controller_manager()
            self.wait_for("the default ServiceAccount", lambda: self.has_default_account("default"))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints; raises ApiServerError with its stderr."""
        command = [str(binary("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        home = {**os.environ, "HOME": str(self.directory)}  # its discovery cache goes with us
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=KUBECTL_TIMEOUT_SECONDS,
            env=home,
            check=False,
        )
        if done.returncode != 0:
            raise ApiServerError(done.stderr.strip())
        return done.stdout

    def apply_crds(self) -> None:
        """Applies crds/ and waits until every kind is served."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
        wait_until_established(self, "-f", str(CRDS))

    def create_namespace(self, name: str) -> None:
        """Creates a namespace and waits for its default ServiceAccount."""
        made, answer = self._call("/api/v1/namespaces", {"metadata": {"name": name}})
        if made != HTTPStatus.CREATED:
            raise ApiServerError(f"namespace {name}: {answer}")
        self.wait_for(f"the ServiceAccount of {name}", lambda: self.has_default_account(name))

    def has_default_account(self, namespace: str) -> bool:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        return self._call(path)[0] == HTTPStatus.OK

    def read(self, path: str) -> dict[str, Any]:
        """What ``kubectl get --raw`` prints, without a process: for what is asked again and again.

        Raises ApiServerError for any other answer than 200.
        """
        status, answer = self._call(path)
        if status != HTTPStatus.OK:
            raise ApiServerError(f"{path}: {status} {answer}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def try_out(self, path: str, body: dict[str, Any]) -> None:
        """Has an object validated as ``kubectl apply --server-side --dry-run=server`` has it.

        Args:
            path: of the object, whether it is there or not.
            body: with every field known, or it is refused.

        Raises:
            ApiServerError: the object is refused; the message is the server's.
        """
        asked = "?dryRun=All&fieldManager=kubectl&fieldValidation=Strict"
        status, answer = self._call(path + asked, body, "PATCH", "application/apply-patch+yaml")
        if status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise ApiServerError(str(json.loads(answer)["message"]))

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds; raises ApiServerError that names it."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not condition():
            for name, process in self._processes:
                if process.poll() is not None:
                    raise ApiServerError(
                        f"{name} exited with {process.returncode}: {self._log(name)}"
                    )
            if time.monotonic() > deadline:
                raise ApiServerError(f"waited {START_TIMEOUT_SECONDS} s for {what}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the processes, the last started first, and removes their files."""
        end_processes(self._processes)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write_pki(self) -> None:
        authority = Authority("espalier-test-ca")
        self._file("ca.crt", authority.certificate_pem)
        certificate, key = authority.issue("kube-apiserver", server=True)
        self._file("apiserver.crt", certificate)
        self._file("apiserver.key", key)
        private, public = signing_pair()
        self._file("sa.key", private)
        self._file("sa.pub", public)
        admin = authority.issue("kubernetes-admin", organization="system:masters")
        self._file("admin.crt", admin[0])
        self._file("admin.key", admin[1])
        manager = authority.issue("system:kube-controller-manager")
        for name, pair in (("admin", admin), ("manager", manager)):
            text = kubeconfig(self.url, authority.certificate_pem, *pair)
            self._file(f"{name}.kubeconfig", text.encode())

    def restart(self) -> None:
        """Ends kube-apiserver as a crash does and starts it again on the same port and data."""
        for name, process in self._processes:
            if name == "kube-apiserver":
                process.kill()
                process.wait()
        self._processes = [entry for entry in self._processes if entry[0] != "kube-apiserver"]
        self._start_apiserver()
        self.wait_for("kube-apiserver to be ready again", self._is_ready)

    def _start_etcd(self) -> None:
        at, etcd = self.directory, self._etcd
        self._start(
            "etcd",
            f"--data-dir={at}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            "--listen-peer-urls=http://127.0.0.1:0",
            "--unsafe-no-fsync",
        )

    def _start_apiserver(self) -> None:
        at = self.directory
        self._start(
            "kube-apiserver",
            f"--etcd-servers={self._etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={at}/apiserver.crt",
            f"--tls-private-key-file={at}/apiserver.key",
            f"--client-ca-file={at}/ca.crt",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--endpoint-reconciler-type=none",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            f"--service-account-key-file={at}/sa.pub",
            f"--service-account-signing-key-file={at}/sa.key",
            f"--service-account-issuer={ISSUER}",
        )

    def _start_controller_manager(self) -> None:
        at = self.directory
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={at}/manager.kubeconfig",
            "--secure-port=0",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--root-ca-file={at}/ca.crt",
            f"--service-account-private-key-file={at}/sa.key",
        )

    def _start(self, name: str, *arguments: str) -> None:
        # setpriv ends the child when we are killed; a killed test run leaves nothing behind.
        command = ["setpriv", "--pdeathsig", "KILL", str(binary(name)), *arguments]
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)
        self._processes.append((name, process))

    def _is_ready(self) -> bool:
        try:
            return self._call("/readyz")[0] == HTTPStatus.OK
        except OSError:
            return False

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        """Of the administrator."""
        trust = ssl.create_default_context(cafile=str(self.directory / "ca.crt"))
        trust.load_cert_chain(self.directory / "admin.crt", self.directory / "admin.key")
        return trust

    def _call(
        self,
        path: str,
        body: object = None,
        method: str = "POST",
        content_type: str = "application/json",
    ) -> tuple[int, str]:
        """Status and body of the answer to a GET, or where there is a body to what has one."""
        call = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": content_type},
            method="GET" if body is None else method,
        )
        timeout, context = CALL_TIMEOUT_SECONDS, self._trust
        try:
            with urllib.request.urlopen(call, timeout=timeout, context=context) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def _log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")[-2000:]

    def _file(self, name: str, content: bytes) -> None:
        path = self.directory / name
        path.write_bytes(content)
        path.chmod(0o600)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    started = time.monotonic()
    with ApiServer() as server:
        server.apply_crds()
        print(f"ready after {time.monotonic() - started:.1f} s", file=sys.stderr)
        print(f"export KUBECONFIG={server.kubeconfig}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)


if __name__ == "__main__":
    main()
