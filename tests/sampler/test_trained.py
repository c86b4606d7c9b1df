"""What the trainer trained, vLLM serves: a checkpoint, its export, and the merged model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sampler import server
from tests.sampler import tiny as served
from tests.trainer import tiny
from tests.trainer.importing import import_directory

from espalier.core import names
from espalier.trainer.batch.data import Datum
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs.export import Wanted, export
from espalier.trainer.volume.checkpoint_store import CheckpointStore

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROMPTS = [[5, 9, 200, 31], [7, 77], [3, 1, 4, 1, 5, 9, 2, 6]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A trainer two steps after a base that vLLM can load too."""
    volume = tmp_path_factory.mktemp("weights")
    model = served.make_model(tmp_path_factory.mktemp("model"))
    base = import_directory(CheckpointStore(volume, "importer"), model).digest
    engine = tiny.engine(volume, base)
    engine.assign(tiny.assignment())
    for step in range(2):
        tiny.send(engine, "forward-backward", tiny.forward_backward(step), ("s", 2 * step))
        tiny.send(engine, "optim-step", tiny.optim_step(learning_rate=0.05), ("s", 2 * step + 1))
    yield engine
    engine.state.log.close()


def volume_of(engine: Engine) -> Path:
    return engine.state.store.open("checkpoint", engine.state.commits[-1].digest).path.parents[2]


def sampled(rollout: server.Rollout, model: str) -> list[Any]:
    answer = rollout.complete(model, PROMPTS, max_tokens=16, temperature=1, logprobs=1, n=2, seed=3)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"])


def largest_difference(engine: Engine, choices: list[Any]) -> float:
    """Of the log-probs that vLLM sampled with, to the trainer's."""
    data = [
        Datum(tuple(c["prompt_token_ids"]), tuple(c["token_ids"]), (), 0.0, 0.0, number, None)
        for number, c in enumerate(choices)
    ]
    scored = engine.state.compute.score(engine.state.compute.admit(data))
    return max(
        float((torch.tensor(c["logprobs"]["token_logprobs"]) - torch.tensor(own)).abs().max())
        for c, own in zip(choices, scored, strict=True)
    )


def test_vllm_samples_a_checkpoint_and_its_export_with_the_trainers_log_probs(
    trained: Engine, tmp_path: Path
) -> None:
    volume, digest = volume_of(trained), trained.state.commits[-1].digest
    export(volume, digest, tmp_path / "adapter", Wanted(), force=False)
    (tmp_path / "adapter" / "tokenizer.json").unlink()
    exported = served.commit_checkpoint(volume, tmp_path / "adapter", trained.state.base, rank=4)
    rollout = server.start(volume, trained.state.base, model=tiny.MODEL)
    try:
        server.wait_healthy(rollout)
        base = sampled(rollout, "base")
        assert largest_difference(trained, base) > 0.1, "the adapter changes nothing"
        for served_digest in (digest, exported):
            choices = sampled(rollout, names.adapter_name(tiny.MODEL, served_digest))
            assert largest_difference(trained, choices) <= 1e-4
    finally:
        rollout.stop()


def test_vllm_samples_a_merged_model_with_the_trainers_log_probs(
    trained: Engine, tmp_path: Path
) -> None:
    export(
        volume_of(trained),
        trained.state.commits[-1].digest,
        tmp_path / "merged",
        Wanted(merged=True),
        force=False,
    )
    (tmp_path / "volume").mkdir()
    importing = CheckpointStore(tmp_path / "volume", "importer")
    merged = import_directory(importing, tmp_path / "merged").digest
    rollout = server.start(tmp_path / "volume", merged, model=tiny.MODEL)
    try:
        server.wait_healthy(rollout)
        assert largest_difference(trained, sampled(rollout, "base")) <= 1e-4
    finally:
        rollout.stop()
