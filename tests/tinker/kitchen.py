"""Where recipes of Tinker's cookbook are run: a served stack, and a user's directory."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from dev.ports import own_network
from safetensors.torch import load_file
from tests.compat.stage import NAMESPACE, Stage, staged
from tests.compat.test_api_keys import key_of
from tests.tinker.conftest import SPEC
from tests.tinker.cookbook import BASES, lay_out, rows_of, saying
from tests.tinker.sdk import NEWEST, environment, run
from tests.trainer.importing import import_directory

from espalier.controllers.peers.peer import PORT
from espalier.gateway.access.offers import Offers
from espalier.kube.objects import Body
from espalier.trainer.settings import MAX_BODY_BYTES
from espalier.trainer.volume.checkpoint_store import CheckpointStore

PATIENCE_SECONDS = 240


@dataclass(frozen=True)
class Kitchen:
    """A user's directory and the cluster that its recipes are run against."""

    stage: Stage
    home: Path
    base: Path
    key: str

    @property
    def variables(self) -> dict[str, str]:
        return environment(self.stage.url, self.key, self.home) | {"HF_DATASETS_OFFLINE": "1"}

    def say(self, *texts: str) -> None:
        """What the sampler answers from now on: one of these, by chance."""
        self.stage.write = saying(self.base, *texts)

    async def cook(self, log: Path, *call: str) -> str:
        """Runs a recipe to its end; what it said."""
        return await self.run(*call, f"log_path={log}")

    async def run(self, *call: str) -> str:
        """Runs a command of the cookbook to its end; what it said."""
        done = await run(NEWEST, self.variables, *call)
        assert done.code == 0, done.errors[-4000:]
        return done.output + done.errors

    async def saved(self, client: Process, log: Path, count: int) -> None:
        """Waits until a recipe has noted so many checkpoints."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(rows_of(log / "checkpoints.jsonl")) < count:
                assert client.returncode is None, f"ended before {count} checkpoints"
                await self.stage.ticked.wait()

    def checkpoint(self, path: str) -> Body:
        """The Checkpoint that has weights saved under a path of Tinker's."""
        wanted = path.removeprefix("tinker://")
        (body,) = [
            body
            for key, body in self.stage.cluster.objects.items()
            if key.kind == "Checkpoint" and wanted in json.dumps(body.get("status", {}))
        ]
        return body

    def lineage(self, path: str) -> list[Body]:
        """The Checkpoints from the base to the weights of a path: one for each applied step."""
        found = [self.checkpoint(path)]
        while parent := found[0]["spec"].get("parentRef"):
            found.insert(0, self.stage.body("Checkpoint", parent["name"]))
        return found

    def weights(self, path: str) -> dict[str, torch.Tensor]:
        """The adapter that was saved under a path."""
        directory = self.checkpoint(path)["spec"]["digest"].replace(":", "-")
        (file,) = self.stage.volume.glob(f"**/{directory}/adapter_model.safetensors")
        return load_file(file)


def final(log: Path) -> str:
    """The path of a run's last state."""
    last = rows_of(log / "checkpoints.jsonl")[-1]
    assert last["name"] == "final", last
    path: str = last["state_path"]
    return path


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Kitchen]:
    """A stack that offers the tiny model under two names."""
    volume, home = directory / "weights", directory / "home"
    volume.mkdir()
    base = lay_out(home)
    digest = import_directory(CheckpointStore(volume, "importer"), base).digest
    async with staged(volume, digest, own_network(PORT)) as stage:
        offers = [{"name": name, "namespace": NAMESPACE, "spec": SPEC} for name in BASES]
        stage.max_body_bytes = MAX_BODY_BYTES
        stage.offers = Offers.read(json.dumps(offers), (NAMESPACE,))
        await stage.stop_gateway()
        await stage.start_gateway()
        yield Kitchen(stage, home, base, await key_of(stage))
