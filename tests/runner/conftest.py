"""What every test of the loop starts from."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from tests.runner.bench import Bench
from tests.runner.standin import StandIn


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    rows = [json.dumps({"prompt": f"{digit}=", "answer": str(digit)}) for digit in range(8)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    gateway = StandIn()
    async with TestServer(gateway.app()) as running:
        yield Bench(gateway, str(running.make_url("/")), tmp_path)
