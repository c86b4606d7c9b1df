"""A real MLflow server on loopback, in an environment of its own."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120
INSTALL_SECONDS = 600


@contextmanager
def mlflow_server(directory: Path) -> Iterator[str]:
    """Its URI, while it runs over a database in ``directory``."""
    made = subprocess.run(
        [str(ROOT / "dev" / "mlflow.sh")],
        stdout=subprocess.PIPE,
        text=True,
        timeout=INSTALL_SECONDS,
        check=True,
    )
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [made.stdout.strip(), "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{directory}/mlflow.db"]
    command += ["--default-artifact-root", str(directory / "artifacts")]
    with (directory / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
        try:
            _await(uri, server, directory / "mlflow.log")
            yield uri
        finally:
            server.terminate()
            server.wait(30)


def _await(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"MLflow did not start: {log.read_text()[-2000:]}")
