"""Tinker's unmodified SDK against ``espalier dev``: real gateway, operator, trainer and vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from dev.ports import free_port
from tests.local.test_dev import SAME, dev
from tests.sampler.tiny import make_model
from tests.tinker.scenarios import drive
from typer.testing import CliRunner

from espalier.cli.main import app

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

# Only the base is taken of it: it is neither trained nor served.
MANIFEST = """
apiVersion: espalier.dev/v1alpha1
kind: TrainableModel
metadata: {name: template}
spec:
  source: {base: {image: tiny}}
  trainer: {dtype: float32}
  rollout: {replicas: 0, maxModelTokens: 64}
  storage: {persistentVolumeClaim: {claimName: weights}}
"""
STEPS = 6


async def test_a_policy_learns_by_the_sdk_from_what_vllm_samples(tmp_path: Path) -> None:
    model, manifests, home = (tmp_path / name for name in ("model", "manifests", "home"))
    make_model(model)
    manifests.mkdir()
    home.mkdir()
    (manifests / "model.yaml").write_text(MANIFEST)
    port = free_port()
    async with dev(manifests, model, port) as running:
        state = await running.says(r"ESPALIER_LOCAL=(\S+)")
        create = ("keys", "create", "me", "--service-account", "me")
        done = CliRunner().invoke(app, ["--local", state[1], *create])
        assert done.exit_code == 0, done.output
        url, key = f"http://127.0.0.1:{port}", done.stdout.strip()
        told = await drive(url, key, home, "learns", base="tiny", steps=STEPS)
    rewards = told["rewards"]
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.2, rewards
    # Trainer and sampler agree on every token, at every step.
    assert told["gap"] < SAME
