"""Checkpoints of a small tree: three steps on main, two on b2 from the first."""

from __future__ import annotations

from typing import Any

from espalier.core.volume import checkpoint_uri

TREE = (
    ("arith-000001", "main", 1, 1, "", "0.1"),
    ("arith-000002", "main", 2, 1, "arith-000001", "0.25"),
    ("arith-000003", "main", 3, 1, "arith-000002", "0.5"),
    ("arith-b2-000002", "b2", 2, 2, "arith-000001", "0.3"),
    ("arith-b2-000003", "b2", 3, 2, "arith-b2-000002", "0.75"),
)
HEAD = "arith-b2-000003"


def manifests() -> list[dict[str, Any]]:
    """The objects, status included."""
    return [_manifest(index, node) for index, node in enumerate(TREE, 1)]


def _manifest(index: int, node: tuple[str, str, int, int, str, str]) -> dict[str, Any]:
    name, branch, step, term, parent, reward = node
    digest = f"{index:064x}"
    spec: dict[str, Any] = {
        "modelRef": {"name": "arith"},
        "step": step,
        "branch": branch,
        "term": term,
        "uri": checkpoint_uri(f"sha256:{digest}"),
        "digest": f"sha256:{digest}",
    }
    if parent:
        spec["parentRef"] = {"name": parent}
    status: dict[str, Any] = {
        "observedGeneration": 1,
        "metrics": [{"name": "reward/mean", "value": reward}],
    }
    if name == HEAD:
        status["headMark"] = "> arith"
    return {
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": name, "labels": {"espalier.dev/model": "arith"}},
        "spec": spec,
        "status": status,
    }
