"""A tiny model on a real vLLM behind the gateway, on an API server without nodes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from bench.gateway.process import NAMESPACE, Gateway, gateway, pod_uid
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.sampler.server import Rollout, start, wait_healthy
from tests.sampler.tiny import commit_adapter, commit_base, make_model

from espalier import identity
from espalier.core.names import adapter_name


@dataclass(frozen=True)
class Volume:
    """Where the base and the adapter of the head are."""

    path: Path
    base: str
    digest: str

    @property
    def adapter(self) -> str:
        return adapter_name("arith", self.digest)


@contextmanager
def tiny_volume() -> Iterator[Volume]:
    """A tiny base and one adapter of it, until the end."""
    with tempfile.TemporaryDirectory() as scratch:
        path, model = Path(scratch) / "volume", Path(scratch) / "model"
        base = commit_base(path, make_model(model))
        yield Volume(path, base, commit_adapter(path, model, base, seed=1))


@asynccontextmanager
async def before_vllm(
    server: ApiServer, volume: Volume, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[tuple[Gateway, Rollout]]:
    """The gateway, with these settings, and the sampler that it leads to."""
    key, port = identity.generate_private_key(), free_port()
    async with gateway(server, volume.digest, port, key, settings) as serving:
        rollout = start(
            volume.path,
            volume.base,
            private_key=key,
            model="arith",
            namespace=NAMESPACE,
            uid=pod_uid(server, "rollout"),
            port=port,
        )
        try:
            await asyncio.to_thread(wait_healthy, rollout, 400)
            (await asyncio.to_thread(rollout.serve, volume.adapter)).raise_for_status()
            yield serving, rollout
        finally:
            await asyncio.to_thread(rollout.stop)
