from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from dev.ports import own_network
from tests.compat.stage import staged
from tests.gateway.conftest import cluster
from tests.recovery.site import MODEL, Site, VerifyingRollouts
from tests.trainer import tiny

from espalier.controllers.peers.peer import PORT
from espalier.kube.objects import Body

__all__ = ["cluster"]


def scrub(volume: Path, arguments: list[str]) -> Body:
    """What the container of a scrubber does."""
    command = [sys.executable, "-m", "espalier.trainer.jobs.scrubber", *arguments]
    variables = {**os.environ, "ESPALIER_VOLUME": str(volume)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    report: Body = json.loads(done.stdout)
    return report


@pytest.fixture
async def site(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A model whose client has taken three steps."""
    volume = tmp_path / "weights"
    volume.mkdir()
    base = tiny.write_base(volume, tmp_path / "source")
    rollouts = VerifyingRollouts(volume, base)
    async with staged(volume, base, own_network(PORT), rollouts) as stage:
        stage.kubelet.scrub = partial(scrub, volume)
        made = Site(stage, request.node.name.removeprefix("test_")[:60])
        await stage.model(MODEL)
        await stage.training(MODEL)
        await made.train(3)
        await made.serves("arith-000003")
        yield made
        made.close()
