"""A real Prometheus as a process: what it finds, and what it answers to queries."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from dev.apiserver import BINARIES, end_processes
from dev.ports import free_port

Config = dict[str, Any]


def tool(name: str) -> Path:
    """One of Prometheus' programs."""
    path = BINARIES / name
    assert path.exists(), f"{name} is not in {BINARIES}: run dev/tools.sh monitoring"
    return path


def promtool(*arguments: str) -> str:
    """What promtool says; fails where it finds a fault."""
    done = subprocess.run(
        [str(tool("promtool")), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Prometheus:
    """Asks a Prometheus at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=30)

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an instant; fails where the expression is not understood."""
        form = {"query": expression} | ({} if at is None else {"time": str(at)})
        answer = self._client.post("/api/v1/query", data=form).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of a span of time, in seconds since 1970."""
        form = {
            "query": expression,
            "start": str(start),
            "end": str(end),
            "step": str(step),
        }
        answer = self._client.post("/api/v1/query_range", data=form).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """The value of the one series."""
        (found,) = self.query(expression)
        return float(found["value"][1])

    def until(self, expression: str, count: int, seconds: float = 60) -> list[dict[str, Any]]:
        """The series, once there are so many of them."""
        deadline = time.monotonic() + seconds
        while len(found := self.query(expression)) < count:
            assert time.monotonic() < deadline, (expression, found, self.targets())
            time.sleep(0.1)
        return found

    def targets(self) -> list[tuple[str, str, str]]:
        """URL, health and last error of what is scraped."""
        active = self._client.get("/api/v1/targets").json()["data"]["activeTargets"]
        return [(one["scrapeUrl"], one["health"], one["lastError"]) for one in active]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self._client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running(scrapes: Sequence[Config], rules: Sequence[Path] = ()) -> Iterator[Prometheus]:
    """A Prometheus with these scrape configs, which scrapes every second by default."""
    with tempfile.TemporaryDirectory(prefix="prometheus-") as made:
        folder = Path(made)
        config = folder / "prometheus.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "scrape_configs": list(scrapes),
                    "rule_files": [str(path) for path in rules],
                }
            )
        )
        promtool("check", "config", str(config))
        port = free_port()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    str(tool("prometheus")),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            found = Prometheus(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + 60
            while not found.ready():
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.1)
            yield found
        finally:
            end_processes([("prometheus", process)])
