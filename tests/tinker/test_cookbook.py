"""Recipes of Tinker's cookbook, unmodified and without a network, on the tiny model."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from dev.ports import own_network
from safetensors.torch import load_file
from tests.compat.stage import NAMESPACE, Stage, staged
from tests.compat.test_api_keys import key_of
from tests.tinker.conftest import SPEC
from tests.tinker.cookbook import BASE, boxed_digits, lay_out, rows_of
from tests.tinker.sdk import NEWEST, environment, run, started

from espalier.controllers.peers.peer import PORT
from espalier.gateway.access.offers import Offers
from espalier.trainer.jobs.importer import import_directory
from espalier.trainer.volume.checkpoint_store import CheckpointStore

pytestmark = pytest.mark.timeout(900)
PATIENCE_SECONDS = 240
RL = (
    *("batch_size=2", "group_size=4", "max_steps=3", "save_every=1", "max_tokens=24"),
    *("lora_rank=4", "learning_rate=1e-2", "loss_fn=importance_sampling"),
)
SL = ("batch_size=2", "save_every=1", "lora_rank=4", "learning_rate=1e-2")
SL_STEPS = 6


@dataclass(frozen=True)
class Kitchen:
    """A user's directory and the cluster that its recipes are run against."""

    stage: Stage
    home: Path
    key: str

    def call(self, recipe: str, log: Path, *settings: str) -> tuple[str, ...]:
        """The arguments of a recipe's command line."""
        module = f"tinker_cookbook.recipes.{recipe}"
        return ("-m", module, f"model_name={BASE}", f"log_path={log}", *settings)

    @property
    def variables(self) -> dict[str, str]:
        return environment(self.stage.url, self.key, self.home) | {"HF_DATASETS_OFFLINE": "1"}

    async def cook(self, recipe: str, log: Path, *settings: str) -> str:
        """Runs a recipe to its end; what it said."""
        done = await run(NEWEST, self.variables, *self.call(recipe, log, *settings))
        assert done.code == 0, done.errors[-4000:]
        return done.output + done.errors

    def checkpoint(self, path: str) -> str:
        """The Checkpoint that has weights saved under a path of Tinker's."""
        wanted = path.removeprefix("tinker://")
        (name,) = [
            key.name
            for key, body in self.stage.cluster.objects.items()
            if key.kind == "Checkpoint" and wanted in json.dumps(body.get("status", {}))
        ]
        return name

    def weights(self, path: str) -> dict[str, torch.Tensor]:
        """The adapter that was saved under a path."""
        body = self.stage.body("Checkpoint", self.checkpoint(path))
        directory = body["spec"]["digest"].replace(":", "-")
        (file,) = self.stage.volume.glob(f"**/{directory}/adapter_model.safetensors")
        return load_file(file)


@pytest.fixture
async def kitchen(tmp_path: Path) -> AsyncIterator[Kitchen]:
    volume, home = tmp_path / "weights", tmp_path / "home"
    volume.mkdir()
    base = lay_out(home)
    digest = import_directory(CheckpointStore(volume, "importer"), base).digest
    async with staged(volume, digest, own_network(PORT)) as stage:
        offer = {"name": BASE, "namespace": NAMESPACE, "spec": SPEC}
        stage.offers = Offers.read(json.dumps([offer]), (NAMESPACE,))
        stage.write = boxed_digits(base)
        await stage.stop_gateway()
        await stage.start_gateway()
        yield Kitchen(stage, home, await key_of(stage))


async def test_rl_loop_samples_trains_and_saves(kitchen: Kitchen, tmp_path: Path) -> None:
    log = tmp_path / "rl"
    await kitchen.cook("rl_loop", log, *RL)
    steps = rows_of(log / "metrics.jsonl")
    assert [row["progress/batch"] for row in steps] == [0, 1, 2]
    # The scripted sampler is right one time in three, whatever it was trained on.
    assert 0 < sum(row["reward/total"] for row in steps) < len(steps)
    saved = rows_of(log / "checkpoints.jsonl")
    assert [row["name"] for row in saved] == ["000001", "000002", "final"]
    assert [row for row in saved if "sampler_path" in row] == [saved[-1]]
    names = [kitchen.checkpoint(row["state_path"]) for row in saved]
    assert len(set(names)) == 3, "each was saved after one more step"
    one, other = (kitchen.weights(saved[at]["state_path"]) for at in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    asked = [body for body in kitchen.stage.sampled if body["n"] == 4]
    assert len(asked) == 6, "each question is one request of four answers"


async def test_sl_loop_learns_and_ends_the_same_after_everything_was_killed(
    kitchen: Kitchen, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    await kitchen.cook("sl_loop", whole, *SL)
    losses = [row["train_mean_nll"] for row in rows_of(whole / "metrics.jsonl")]
    assert len(losses) == SL_STEPS
    assert losses[-1] < losses[0]

    stage = kitchen.stage
    async with started(NEWEST, kitchen.variables, *kitchen.call("sl_loop", broken, *SL)) as client:
        await _saved(stage, client, broken, 1)
        await stage.stop_gateway()
        await stage.start_gateway()
        (model,) = _trained(stage) - {_model(whole)}
        await stage.restart_trainer(model)
        await _saved(stage, client, broken, 3)
        client.kill()
    before = len(rows_of(broken / "metrics.jsonl"))
    assert before < SL_STEPS
    said = await kitchen.cook("sl_loop", broken, *SL)
    assert "Resuming from batch" in said

    one, other = (
        kitchen.weights(rows_of(log / "checkpoints.jsonl")[-1]["state_path"])
        for log in (whole, broken)
    )
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


async def _saved(stage: Stage, client: Process, log: Path, count: int) -> None:
    """Waits until a recipe has noted so many checkpoints."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(rows_of(log / "checkpoints.jsonl")) < count:
            assert client.returncode is None, f"ended before {count} checkpoints"
            await stage.ticked.wait()


def _model(log: Path) -> str:
    """The TrainableModel that a recipe's first checkpoint is of."""
    run_id = rows_of(log / "checkpoints.jsonl")[0]["state_path"].split("/")[2]
    session, _, number = run_id.partition(":train:")
    return f"tk-{session.partition('.')[2]}-{number}"


def _trained(stage: Stage) -> set[str]:
    return {trainer.model for trainer in stage.trainers.values()}
