"""Kueue, real, beside an API server of its own: its webhooks are asked about every pod."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from dev.apiserver import ApiServer
from dev.kueue import Kueue
from tests.gitops.team import Team, teams


@pytest.fixture(scope="session")
def queueing() -> Iterator[ApiServer]:
    """An API server with Espalier's CRDs, and Kueue."""
    with ApiServer() as server:
        server.apply_crds()
        with Kueue(server):
            yield server


@pytest.fixture
async def team(
    queueing: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Team]:
    """A namespace with a real operator; its pods are played, once Kueue has let them go."""
    monkeypatch.setenv("KUBECONFIG", str(queueing.kubeconfig))
    name = f"queues-{uuid.uuid4().hex[:6]}"
    queueing.create_namespace(name)
    async with AsyncExitStack() as stack:
        (made,) = await stack.enter_async_context(teams(queueing, [name], tmp_path))
        yield made
