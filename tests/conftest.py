"""Fixtures for tests against a real API server (etcd, kube-apiserver, controller manager).

What hypothesis finds must not depend on how busy the machine is, nor on chance: it tries the same
examples every time. ``pytest --hypothesis-profile=explore`` tries others.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from dev.apiserver import ApiServer
from hypothesis import HealthCheck, settings

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("same")
# Argo CD, Flux and the cluster's pods run from their first test to the end of the session: these
# folders come last, so that the others have the machine for themselves.
LAST = ("e2e", "gitops")


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """One API server for the whole test run, with Espalier's CRDs."""
    with ApiServer() as server:
        server.apply_crds()
        yield server


@pytest.fixture
def namespace(apiserver: ApiServer) -> str:
    """A fresh namespace with its default ServiceAccount; it goes with the server."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    apiserver.create_namespace(name)
    return name


@pytest.fixture
def system(apiserver: ApiServer, namespace: str) -> str:
    """A namespace for Espalier itself, beside the one that it serves."""
    name = f"{namespace}-system"
    apiserver.create_namespace(name)
    return name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the API server carries its marker, so that ``-m "not apiserver"`` is quick."""
    for item in items:
        if "apiserver" in getattr(item, "fixturenames", ()):
            item.add_marker("apiserver")
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    folder = item.path.parent.name
    return LAST.index(folder) + 1 if folder in LAST else 0
