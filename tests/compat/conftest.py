from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from dev.ports import own_network
from tests.compat.clients import OUT
from tests.compat.stage import Stage, staged
from tests.trainer import tiny

from espalier.controllers.peers.peer import PORT


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the gateway's process has."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    volume = tmp_path / "weights"
    volume.mkdir()
    base = tiny.write_base(volume, tmp_path / "source")
    async with staged(volume, base, own_network(PORT)) as made:
        await made.model("arith")
        await made.training("arith")
        yield made


@pytest.fixture(scope="session")
def table() -> Iterator[dict[str, dict[str, str]]]:
    """What each version's methods came to; written as the compatibility table at the end."""
    results: dict[str, dict[str, str]] = {}
    yield results
    methods = list(dict.fromkeys(method for found in results.values() for method in found))
    lines = ["| client | method | result |", "|---|---|---|"]
    for method in methods:
        for version, found in results.items():
            lines.append(f"| hud {version} | {method} | {found.get(method, 'not run')} |")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "table.md").write_text("\n".join(lines) + "\n")
