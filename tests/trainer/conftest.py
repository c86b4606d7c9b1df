from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.trainer import tiny
from tests.trainer.tiny import Volume

from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    torch.set_num_threads(1)
    volume = tmp_path_factory.mktemp("weights")
    return Volume(volume, tiny.write_base(volume, tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="session")
def shared_policy(tiny_base: Volume) -> Policy:
    return tiny.policy(tiny_base.path, tiny_base.base)


@pytest.fixture
def policy(shared_policy: Policy) -> Policy:
    """The tiny policy with a fresh adapter and no gradients."""
    shared_policy.reset()
    shared_policy.drop_gradients()
    return shared_policy


@pytest.fixture
def volume(tiny_base: Volume, tmp_path: Path) -> Volume:
    """A volume of its own that holds the base."""
    shutil.copytree(tiny_base.path / "bases", tmp_path / "bases")
    return Volume(tmp_path, tiny_base.base)


@pytest.fixture
def engine(volume: Volume, policy: Policy) -> Iterator[Engine]:
    """An engine with term 1 assigned."""
    made = tiny.engine(volume.path, volume.base, policy)
    made.assign(tiny.assignment())
    yield made
    made.state.log.close()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An adapter that PEFT made and saved, with weights that are not zero."""
    config = LoraConfig(
        r=tiny.ADAPTER.rank,
        lora_alpha=tiny.ADAPTER.alpha,
        target_modules="all-linear",
        lora_dropout=0.1,
    )
    torch.manual_seed(3)
    adapted = get_peft_model(tiny.causal_lm(), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "outside")
    return tmp_path / "outside"
