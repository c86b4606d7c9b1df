"""A model that does not fit is refused before it is loaded, with the figures."""

from __future__ import annotations

import pytest
from tests.trainer import tiny
from tests.trainer.tiny import Volume

from espalier.api.model.adapter import Adapter
from espalier.trainer.memory import host
from espalier.trainer.policy import fits
from espalier.trainer.policy.fits import Footprint
from espalier.trainer.policy.policy import load_policy
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.volume.checkpoint_store import CheckpointStore

GIB = 1 << 30


def test_the_footprint_is_that_of_the_loaded_model(volume: Volume) -> None:
    path = CheckpointStore(volume.path, tiny.MODEL).open("base", volume.base).path
    policy = load_policy(path, tiny.ADAPTER, "float32")
    trained = sum(parameter.numel() for parameter in policy.parameters.values())
    weights = sum(parameter.numel() for parameter in policy.causal_lm.parameters()) - trained
    found = fits.footprint(path, tiny.ADAPTER, "float32", 1)
    assert found == Footprint(base=4 * weights, training=32 * trained)
    assert fits.footprint(path, tiny.ADAPTER, "bfloat16", 2).base == 2 * weights
    assert fits.footprint(path, tiny.FULL, "float32", 1).total == 32 * weights
    assert fits.footprint(path, tiny.FULL, "float32", 16) == Footprint(4 * weights, 0)


def test_a_model_beyond_the_limit_is_refused_before_it_is_loaded(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = CheckpointStore(volume.path, tiny.MODEL).open("base", volume.base).path
    needed = fits.footprint(path, tiny.ADAPTER, "float32", 1).total
    monkeypatch.setattr(host, "free_host_memory", lambda *_: needed - 1)
    with pytest.raises(UserMistakeError) as caught:
        load_policy(path, tiny.ADAPTER, "float32")
    assert caught.value.problem.reason == "TooLittleMemory"
    monkeypatch.setattr(host, "free_host_memory", lambda *_: needed)
    assert load_policy(path, tiny.ADAPTER, "float32").parameters


def test_the_refusal_names_what_is_needed_what_is_free_and_what_to_set() -> None:
    with pytest.raises(UserMistakeError) as caught:
        fits.check(Footprint(base=8 * GIB, training=2 * GIB), 1 * GIB)
    problem = caught.value.problem
    assert "8.00 GiB and training it 2.00 GiB" in problem.detail
    assert "1.00 GiB are free" in problem.detail
    assert "spec.trainer.template.resources to more than 10.0 GiB" in problem.remedy


def test_an_unknown_target_module_is_named_as_such(volume: Volume) -> None:
    path = CheckpointStore(volume.path, tiny.MODEL).open("base", volume.base).path
    adapter = Adapter(rank=4, alpha=8, target_modules=["other"])
    with pytest.raises(UserMistakeError) as caught:
        load_policy(path, adapter, "float32")
    assert caught.value.problem.reason == "UnknownTargetModules"
