"""Probes tell which check fails and why; metrics are Prometheus text."""

from __future__ import annotations

import json
import subprocess
import sys

import aiohttp

from espalier.kube import queue_metrics
from espalier.kube.probes import HealthServer


async def fetch(server: HealthServer, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.port}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def test_probes_name_the_check_that_fails() -> None:
    live, ready = {"loop": lambda: None}, {"cache": lambda: "not synced", "lease": lambda: None}
    async with HealthServer(0, live, ready, host="127.0.0.1") as server:
        assert await fetch(server, "/healthz") == (200, '{"loop": "ok"}')
        status, text = await fetch(server, "/readyz")
    assert status == 503
    assert json.loads(text) == {"cache": "not synced", "lease": "ok"}


async def test_metrics_are_served_under_the_names_that_dashboards_know() -> None:
    queue_metrics.RECONCILES.labels(kind="TrainingRun", result="success").inc()
    async with HealthServer(0, {}, {}, host="127.0.0.1") as server:
        status, text = await fetch(server, "/metrics")
    assert status == 200
    assert 'espalier_reconcile_total{kind="TrainingRun",result="success"}' in text
    assert "espalier_workqueue_depth" in text


def test_a_process_whose_loop_stands_still_says_where_and_ends() -> None:
    stuck = """
import asyncio, threading
from espalier.kube.heartbeat import beat
async def main():
    heart = asyncio.create_task(beat(stuck_seconds=2))
    await asyncio.sleep(0)
    stands_still()
def stands_still():
    threading.Event().wait(60)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", stuck], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "in stands_still" in done.stderr
