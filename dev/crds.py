"""Waiting until what was applied as CRDs is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Cluster(Protocol):
    """The API server of a test: our own process, or a cluster in use."""

    kubeconfig: Path

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints; raises with its stderr."""

    def read(self, path: str) -> dict[str, Any]:
        """The object at a path of the API; raises with the server's words."""

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds; raises an error that names it."""


def wait_until_established(cluster: Cluster, *definitions: str) -> None:
    """Waits for CRDs, named as kubectl takes them (``-f FILE``, ``crd NAME``).

    `kubectl wait` fails at once on a CRD that is so new that it has no conditions at all.
    """

    def established() -> bool:
        found = json.loads(cluster.kubectl("get", "-o=json", *definitions))
        return all(_is_established(crd) for crd in found.get("items", [found]))

    cluster.wait_for(f"CRDs to be established: {' '.join(definitions)}", established)


def _is_established(crd: dict[str, Any]) -> bool:
    conditions = crd.get("status", {}).get("conditions") or ()
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
