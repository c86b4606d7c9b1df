"""What the tests of threats share with others: users, a real API server, a tiny trainer."""

from __future__ import annotations

from tests.gateway.conftest import (
    cluster,
    gateway,
    pytest_asyncio_loop_factories,
    upstream,
    users,
)
from tests.trainer.conftest import engine, policy, shared_policy, tiny_base, volume

__all__ = [
    "cluster",
    "engine",
    "gateway",
    "policy",
    "pytest_asyncio_loop_factories",
    "shared_policy",
    "tiny_base",
    "upstream",
    "users",
    "volume",
]
