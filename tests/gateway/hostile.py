"""A gateway process whose pods are hostile, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.gateway.conftest import GATEWAY_AUDIENCE, PRIVATE_KEY, RIGHTS, token
from tests.gateway.process import PATIENCE_SECONDS, apply, served, signing_key, trained
from tests.gateway.world import digest

MIB = 2**20
# 195 KiB on the wire.
BOMB = gzip.compress(b"0" * (200 * MIB))
DEEP = b'{"model":"arith","a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
ADAPTER = "arith@a1a1a1a1a1a1"


@dataclass
class Pod:
    """Answers as the prompt, or the session of the key, tells it to, on a thread of its own."""

    port: int = field(default_factory=free_port)
    elsewhere: int = field(default_factory=free_port)
    visits: list[str] = field(default_factory=list)
    # Counts the requests that are never answered.
    silent: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        word = request.headers.get("Idempotency-Key", "").partition("/")[0]
        if word == "early":
            problem = {"detail": "loading", "reason": "Loading", "remedy": "wait"}
            return web.json_response(problem, status=503)
        body = await request.read()
        word = word or json.loads(body)["prompt"]
        if word == "silent":
            self.silent.release()
            await asyncio.Event().wait()
        if word in ("endless", "stream"):
            return await self._endless(request, word)
        return self._answer_of(word, len(body))

    def _answer_of(self, word: str, length: int) -> web.Response:
        elsewhere = f"http://127.0.0.1:{self.elsewhere}/secret"
        made: dict[str, tuple[int, bytes, dict[str, str]]] = {
            "hello": (200, _json({"model": ADAPTER, "choices": [{"index": 0}]}), {}),
            "length": (200, _json({"length": length}), {}),
            "redirect": (307, b"", {"Location": elsewhere}),
            "bomb": (200, BOMB, {"Content-Encoding": "gzip"}),
            "deep": (200, DEEP, {}),
            "list": (200, b"[1]", {}),
        }
        large = {
            "announced": lambda: b" " * (65 * MIB),
            "nested": lambda: b'{"choices":[' + b"[]," * (20 * MIB) + b"0]}",
        }
        status, body, headers = made.get(word) or (200, large[word](), {})
        return web.Response(
            status=status, body=body, headers=headers, content_type="application/json"
        )

    async def _endless(self, request: web.Request, word: str) -> web.StreamResponse:
        kind = "text/event-stream" if word == "stream" else "application/json"
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        while True:
            await response.write(b"data: " + b"x" * MIB)

    async def visited(self, request: web.Request) -> web.Response:
        self.visits.append(request.path)
        return web.json_response({"internal": "metadata"})

    @contextmanager
    def running(self) -> Iterator[None]:
        begun, ended = threading.Event(), asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            runners = []
            for port, handler in ((self.port, self.answer), (self.elsewhere, self.visited)):
                app = web.Application(client_max_size=2**30)
                app.router.add_route("*", "/{path:.*}", handler)
                runner = web.AppRunner(app, shutdown_timeout=0.1)
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", port).start()
                runners.append(runner)
            begun.set()
            await ended.wait()
            for runner in runners:
                await runner.cleanup()

        thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        thread.start()
        assert begun.wait(PATIENCE_SECONDS)
        try:
            yield
        finally:
            loops[0].call_soon_threadsafe(ended.set)
            thread.join(PATIENCE_SECONDS)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@dataclass
class Hostile:
    """The gateway's process and who may call it."""

    port: int
    metrics_port: int
    pid: int
    log: Path
    pod: Pod
    namespace: str
    trainer: str
    stranger: str

    def peak(self) -> int:
        """Bytes of memory at the highest since ``mark``."""
        return self._status("VmHWM")

    def mark(self) -> int:
        """Bytes of memory now; the peak counts from here."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self._status("VmRSS")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(name))
        return int(line.split()[1]) * 1024

    def metrics(self) -> str:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=60
        ) as answer:
            return str(answer.read().decode())

    def send(self, head: bytes, body: bytes = b"", seconds: float = 60.0) -> tuple[int, bytes]:
        """Status and body of the answer to raw bytes; the connection is then closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(head.replace(b"\n", b"\r\n") + b"\r\n" + body)
            return answered(connection)

    def post(
        self, path: str, body: bytes, *lines: str, token: str | None = None
    ) -> tuple[int, bytes]:
        headers = "\n".join(
            (
                f"POST {path} HTTP/1.1",
                "Host: gateway",
                f"Authorization: Bearer {self.trainer if token is None else token}",
                f"Content-Length: {len(body)}",
                *lines,
                "",
            )
        )
        return self.send(headers.encode("latin-1"), body)


def answered(connection: socket.socket) -> tuple[int, bytes]:
    """One answer, read to the length that it announces or to the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := connection.recv(65536)):
            raise ConnectionResetError(data)
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    while (not lengths or len(body) < lengths[0]) and (part := connection.recv(65536)):
        body += part
        if not lengths and body.endswith(b"0\r\n\r\n"):
            break
    return int(head.split()[1]), body


@contextmanager
def gateway(server: ApiServer, namespace: str, log: Path, **settings: str) -> Iterator[Hostile]:
    """A process of the gateway in a namespace of its own, with one model on a hostile pod.

    ``settings``: more variables of its environment.
    """
    server.create_namespace(namespace)
    server.kubectl("apply", "-n", namespace, "-f", "-", stdin=RIGHTS)
    for name in ("trainer", "stranger"):
        server.kubectl("create", "serviceaccount", name, "-n", namespace)
    server.kubectl(
        *("create", "rolebinding", "trainer", "-n", namespace, "--role=trainer"),
        f"--serviceaccount={namespace}:trainer",
    )
    pod = Pod()
    served(server, namespace, pod.port, digest("a1"))
    trained(server, namespace, pod.port)
    system = f"{namespace}-system"
    server.create_namespace(system)
    apply(server, system, signing_key(PRIVATE_KEY))
    port, metrics_port = free_port(), free_port()
    environment = {
        "KUBECONFIG": str(server.kubeconfig),
        "POD_NAMESPACE": system,
        "ESPALIER_NAMESPACES": namespace,
        "ESPALIER_PORT": str(port),
        "ESPALIER_METRICS_PORT": str(metrics_port),
    }
    with (
        pod.running(),
        log.open("wb") as errors,
        subprocess.Popen(
            (sys.executable, "-m", "espalier.gateway"),
            env={**os.environ, **environment, **settings},
            stderr=errors,
        ) as process,
    ):
        try:
            _until_ready(port)
            tokens = {
                n: token(server, namespace, n, GATEWAY_AUDIENCE) for n in ("trainer", "stranger")
            }
            yield Hostile(port, metrics_port, process.pid, log, pod, namespace, **tokens)
        finally:
            process.kill()


def _until_ready(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError("the gateway is not ready")
