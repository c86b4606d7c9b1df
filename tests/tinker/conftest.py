from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop
from dev.ports import own_network
from tests.compat.stage import NAMESPACE, Stage, staged
from tests.compat.test_api_keys import key_of
from tests.trainer import tiny

from espalier.controllers.peers.peer import PORT
from espalier.gateway.access.offers import Offers

BASE = "tiny/llama"
SPEC = {
    "source": {"base": {"image": "registry.example/tiny:1"}},
    "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
}


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the gateway's process has."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A cluster that offers a base, and has the model ``arith`` of another."""
    volume = tmp_path / "weights"
    volume.mkdir()
    base = tiny.write_base(volume, tmp_path / "source")
    async with staged(volume, base, own_network(PORT)) as made:
        made.offers = Offers.read(
            f'[{{"name": "{BASE}", "namespace": "{NAMESPACE}", "spec": {json.dumps(SPEC)}}}]',
            (NAMESPACE,),
        )
        await made.stop_gateway()
        await made.start_gateway()
        yield made


@pytest.fixture
async def key(stage: Stage) -> str:
    """Of service account ann, who may do everything in the default namespace."""
    return await key_of(stage)
