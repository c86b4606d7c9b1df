"""Every method of HUD's client, version by version, against a gateway of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.compat.clients import EACH_VERSION, drive, environment
from tests.compat.stage import TRAINER, Stage

pytestmark = pytest.mark.timeout(900)

LOSSES = ["cispo", "cross_entropy", "dro", "gspo", "importance_sampling", "ppo"]
EXPECTED = {
    "available_losses": LOSSES,
    "head (base)": None,
    "forward_backward": [5, True],
    "optim_step": [1, "arith-000001", "arith"],
    "head": ["arith-000001", "importance_sampling", 0.01],
    "forward": [[0, 0, 2], [1, 0, 1], [2, 1, 2], [2, 1, 2], [3, 1, 2]],
    "backward": [5, 2.0],
    "forward_backward_custom": [5, 9.0],
    "step": [2, "arith-000002"],
    "checkpoints": [["arith-000001", None, False], ["arith-000002", "arith-000001", True]],
    "checkpoint fields": {
        "num_traces": 4,
        "num_datums": 5,
        "num_tokens": 9,
        "loss_fn": "importance_sampling",
        # Which checkpoint sampled these tokens nobody knows: they are figures of the step alone.
        "mean_reward": None,
        "rollout/reward/mean": 0.375,
        "rollout/reward/std": pytest.approx(0.414578, rel=1e-4),
        "rollout/reward/min": 0.0,
        "rollout/reward/max": 1.0,
    },
    "set_head": None,
    "branch": [True, True, 3],
}


@pytest.mark.parametrize("version", EACH_VERSION)
async def test_every_method_of_the_client_works_unmodified(
    stage: Stage, table: dict[str, dict[str, str]], version: str, tmp_path: Path
) -> None:
    variables = environment(stage.url, TRAINER, tmp_path)
    results = dict(await drive(version, "surface", variables, model="arith"))
    table[version] = {
        method: "works" if results.get(method, "missing") == wanted else f"{results.get(method)!r}"
        for method, wanted in EXPECTED.items()
    }
    assert results == EXPECTED
