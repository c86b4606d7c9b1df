"""What one scrape costs each process of an installation, in CPU time of that process.

    python -m bench.scraping NAMESPACE

Reads ``process_cpu_seconds_total`` of every pod before and after a hundred scrapes, and takes off
what the process uses anyway, measured just before. Prints a table and the share of a core that
all of them take together at an interval of 30 s.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from dev.apiserver import BINARIES, end_processes

from espalier.identity import SCRAPE_TOKEN_FIELD, SCRAPE_TOKEN_SECRET

SYSTEM = "espalier-system"
SCRAPES = 100
QUIET_SECONDS = 20.0
INTERVAL_SECONDS = 30.0
CPU = re.compile(r"^process_cpu_seconds_total (\S+)$", re.MULTILINE)
KUBECTL = [
    str(BINARIES / "kubectl"),
    "--kubeconfig",
    os.environ.get("KUBECONFIG") or str(BINARIES.parent / "kubeconfig"),
]


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a scrape, its samples and bytes."""

    pod: str
    seconds: float
    samples: int
    size: int


def measure(namespace: str, pod: str, port: int, token: str) -> Cost:
    """Of one pod; the process must not change what it does meanwhile."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with _forwarded(namespace, pod, port) as url, httpx.Client(headers=headers) as client:

        def scrape() -> str:
            answer = client.get(f"{url}/metrics", timeout=30)
            assert answer.status_code == 200, answer.text
            return answer.text

        first, began = _cpu(scrape()), time.monotonic()
        time.sleep(QUIET_SECONDS)
        quiet = (_cpu(scrape()) - first) / (time.monotonic() - began)
        before, began = _cpu(scrape()), time.monotonic()
        for _ in range(SCRAPES):
            text = scrape()
        used = _cpu(text) - before - quiet * (time.monotonic() - began)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return Cost(pod, max(0.0, used / SCRAPES), len(lines), len(text))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.scraping NAMESPACE")
    kept = f"jsonpath={{.data.{SCRAPE_TOKEN_FIELD}}}"
    token = base64.b64decode(
        _kubectl(SYSTEM, "get", "secret", SCRAPE_TOKEN_SECRET, "-o", kept)
    ).decode()
    costs = [
        measure(SYSTEM, pod, 8080, "") for pod in _pods(SYSTEM, "component in (operator,gateway)")
    ]
    costs += [
        measure(sys.argv[1], pod, 8000, token)
        for pod in _pods(sys.argv[1], "role in (trainer,rollout)")
    ]
    costs += [measure(sys.argv[1], pod, 8080, "") for pod in _pods(sys.argv[1], "role=runner")]
    print("| pod | CPU of a scrape, ms | samples | kB |\n| --- | --- | --- | --- |")
    for cost in costs:
        print(f"| {cost.pod} | {cost.seconds * 1e3:.1f} | {cost.samples} | {cost.size / 1e3:.0f} |")
    share = sum(cost.seconds for cost in costs) / INTERVAL_SECONDS
    print(f"\nall, every {INTERVAL_SECONDS:.0f} s: {share:.3%} of a core")


def _pods(namespace: str, chosen: str) -> list[str]:
    prefix = "app.kubernetes.io/" if chosen.startswith("component") else "espalier.dev/"
    found = _kubectl(
        namespace,
        *("get", "pods", "-l", prefix + chosen, "--field-selector=status.phase=Running"),
        *("-o", "jsonpath={.items[*].metadata.name}"),
    )
    return found.split()


def _kubectl(namespace: str, *arguments: str) -> str:
    done = subprocess.run(
        [*KUBECTL, "-n", namespace, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def _cpu(text: str) -> float:
    found = CPU.search(text)
    assert found is not None
    return float(found[1])


@contextmanager
def _forwarded(namespace: str, pod: str, port: int) -> Iterator[str]:
    process = subprocess.Popen(
        [*KUBECTL, "-n", namespace, "port-forward", f"pod/{pod}", f":{port}"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().decode().split('127.0.0.1:')[1].split()[0]}"
    finally:
        end_processes([("port-forward", process)])


if __name__ == "__main__":
    main()
