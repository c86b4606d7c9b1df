"""A connection to the real API server, and the objects the tests write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from dev.apiserver import ApiServer

from espalier.kube.apiserver import KubernetesCluster


@pytest.fixture
async def kubernetes(
    apiserver: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubernetesCluster]:
    """The port on the real API server."""
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    async with await KubernetesCluster.connect() as cluster:
        yield cluster


@pytest.fixture
def head(namespace: str) -> dict[str, Any]:
    """A CheckpointHead as a user would write it."""
    return {
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "CheckpointHead",
        "metadata": {"name": "arith", "namespace": namespace},
        "spec": {"modelRef": {"name": "arith"}, "mode": "Track"},
    }
