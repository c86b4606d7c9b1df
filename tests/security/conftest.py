"""What the tests of threats share with those of the gateway: users, and a real API server."""

from __future__ import annotations

from tests.gateway.conftest import (
    cluster,
    gateway,
    pytest_asyncio_loop_factories,
    users,
)

__all__ = ["cluster", "gateway", "pytest_asyncio_loop_factories", "users"]
