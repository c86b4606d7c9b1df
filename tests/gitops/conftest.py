"""Argo CD and Flux, real, beside the API server of the test run."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from dev.apiserver import ApiServer
from dev.gitops import ArgoCd, Flux
from tests.gitops.artifacts import directory, save_team
from tests.gitops.team import Team, teams

OpenTeams = Callable[[int], Awaitable[list[Team]]]


@pytest.fixture(scope="session")
def argocd(apiserver: ApiServer) -> Iterator[ArgoCd]:
    """Argo CD core for the whole test run."""
    with ArgoCd(apiserver) as running:
        yield running


@pytest.fixture(scope="session")
def flux(apiserver: ApiServer) -> Iterator[Flux]:
    """Flux's kustomize-controller for the whole test run."""
    with Flux(apiserver) as running:
        yield running


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Path:
    """Where this test leaves its artifacts."""
    return directory(f"{request.path.stem.removeprefix('test_')}/{request.node.name[5:]}")


@pytest.fixture
async def open_teams(
    apiserver: ApiServer, scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[OpenTeams]:
    """Opens so many namespaces with one operator; in the end their objects become artifacts."""
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    async with AsyncExitStack() as stack:

        async def open_(count: int) -> list[Team]:
            run = uuid.uuid4().hex[:6]
            names = [f"team-{run}-{letter}" for letter in "abcdef"[:count]]
            for name in names:
                apiserver.create_namespace(name)
            made = await stack.enter_async_context(teams(apiserver, names, tmp_path))
            for team in made:
                stack.push_async_callback(save_team, team, scenario)
            return made

        yield open_
        log = tmp_path / "operator.log"
        if log.exists():
            (scenario / "operator.log").write_bytes(log.read_bytes())
