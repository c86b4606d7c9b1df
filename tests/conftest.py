"""What every test may use, and how tests are dealt out to workers.

What hypothesis finds must not depend on how busy the machine is, nor on chance: it tries the same
examples every time. ``pytest --hypothesis-profile=explore`` tries others.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has one core. Torch reads this when it is imported, here and in what tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from dev.apiserver import ApiServer
from hypothesis import HealthCheck, settings
from tests import dealing

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """One API server for all tests of a worker, with Espalier's CRDs."""
    with ApiServer() as server:
        server.apply_crds()
        yield server


@pytest.fixture
def namespace(apiserver: ApiServer) -> str:
    """A fresh namespace with its default ServiceAccount; it goes with the server."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    apiserver.create_namespace(name)
    return name


@pytest.fixture(autouse=True)
def _loggers() -> None:
    """vLLM, where a test imported it, has turned off every logger that there was by then."""
    logging.getLogger().setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("espalier.") and isinstance(logger, logging.Logger):
            logger.disabled = False


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
        if item.get_closest_marker("xdist_group"):
            raise pytest.UsageError(f"{item.nodeid}: tests/dealing.py says the group, no marker")
    items.sort(key=lambda item: dealing.turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> dealing.Dealer:
    return dealing.Dealer(config, log)
