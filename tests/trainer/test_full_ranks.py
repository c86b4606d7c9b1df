"""Full fine-tuning on two real ranks, each with a part of the weights, gives one rank's results."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tests.trainer import tiny
from tests.trainer.test_ranks import GENTLE, SPEC, STEP, Pair, data, start
from tests.trainer.tiny import Volume
from torch import Tensor

from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.compute.interface import Compute
from espalier.trainer.memory.planner import Cut
from espalier.trainer.problems import CommandError
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.tensor_files import moments_of, weights_of

CLIPPED = GENTLE.model_copy(update={"grad_clip_norm": 0.5, "weight_decay": 0.1})


@pytest.fixture(scope="module")
def lasting(tiny_base: Volume) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from start(tiny_base, monkeypatch, tiny.FULL)


@pytest.fixture
def pair(lasting: Pair) -> Pair:
    lasting.ranked.reset()
    lasting.ranked.drop_gradients()
    return lasting


@pytest.fixture(scope="module")
def one(tiny_base: Volume) -> LocalCompute:
    return LocalCompute(tiny.policy(tiny_base.path, tiny_base.base, tiny.FULL))


@pytest.fixture
def local(one: LocalCompute) -> LocalCompute:
    one.reset()
    one.drop_gradients()
    return one


def written(compute: Compute, directory: Path) -> Path:
    """A step's checkpoint; the step is also taken."""
    directory.mkdir()
    proposal = compute.propose(CLIPPED)
    compute.write(proposal, directory)
    compute.install(proposal)
    compute.drop_gradients()
    return directory


def content(checkpoint: Path) -> dict[str, Tensor]:
    return dict(weights_of(checkpoint)) | dict(moments_of(checkpoint))


def train(compute: Compute, policy: object, seeds: range) -> list[float]:
    """Steps over batches; log-probs and figures on the way."""
    found: list[float] = []
    for seed in seeds:
        batch = tiny.at(0.7, data(policy, seed))  # type: ignore[arg-type]
        scored = compute.score(compute.admit(batch), keep="forward")
        generator = random.Random(seed)
        weights = [[generator.uniform(-1, 1) for _ in row] for row in scored]
        added = compute.add_weights(
            compute.admit(batch), weights, given={}, group_size=3, forward="forward"
        )
        # Of a group without advantages one rank computes no gradient, and the other may.
        flat = [dataclasses.replace(d, advantage=0.0) if d.group == 0 else d for d in batch]
        loss = compute.add_loss(compute.admit(flat, SPEC), SPEC, 3)
        found += [value for row in scored for value in row]
        found += [added.tally.loss, loss.tally.loss, float(loss.tally.tokens)]
        proposal = compute.propose(CLIPPED)
        found.append(proposal.gradient_norm)
        compute.install(proposal)
        compute.drop_gradients()
    return found


def test_log_probs_losses_and_three_steps_are_those_of_one_rank(
    pair: Pair, local: LocalCompute, tmp_path: Path
) -> None:
    outcomes, checkpoints = [], []
    for name, compute in (("one", local), ("two", pair.ranked)):
        outcomes.append(torch.tensor(train(compute, pair.policy, range(3))))
        compute.add_loss(compute.admit(data(pair.policy, 3), SPEC), SPEC, 3)
        checkpoints.append(content(written(compute, tmp_path / name)))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-5, atol=1e-5)
    assert checkpoints[0].keys() == checkpoints[1].keys()
    for name, value in checkpoints[0].items():
        torch.testing.assert_close(checkpoints[1][name], value, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_one_rank_goes_on_on_two_and_back(
    pair: Pair, local: LocalCompute, tmp_path: Path
) -> None:
    batch = data(pair.policy)
    local.add_loss(local.admit(batch, SPEC), SPEC, 3)
    first = written(local, tmp_path / "one")
    pair.ranked.load(first, 1)
    pair.ranked.add_loss(pair.ranked.admit(batch, SPEC), SPEC, 3)
    second = written(pair.ranked, tmp_path / "two")
    local.add_loss(local.admit(batch, SPEC), SPEC, 3)
    expected = content(written(local, tmp_path / "alone"))
    for name, value in content(second).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    local.load(second, 2)
    assert local.moments.steps == 2
    held = {n: p.detach() for n, p in local.policy.parameters.items()} | local.moments.tensors()
    assert all(torch.equal(held[name], value) for name, value in content(second).items())


def test_the_same_ranks_give_the_same_bits_again(pair: Pair, tmp_path: Path) -> None:
    found = []
    for name in ("once", "again"):
        pair.ranked.reset()
        pair.ranked.drop_gradients()
        train(pair.ranked, pair.policy, range(1))
        pair.ranked.add_loss(pair.ranked.admit(data(pair.policy), SPEC), SPEC, 3)
        found.append(content(written(pair.ranked, tmp_path / name)))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_an_error_of_any_rank_is_its_own_to_the_client_and_training_goes_on(
    pair: Pair, local: LocalCompute, tmp_path: Path
) -> None:
    batch = data(pair.policy)
    pair.ranked.add_loss(pair.ranked.admit(batch, SPEC), SPEC, 3)
    for bad in range(len(batch)):
        broken = [
            dataclasses.replace(datum, advantage=math.inf) if index == bad else datum
            for index, datum in enumerate(batch)
        ]
        with pytest.raises(CommandError, match="loss of inputs") as caught:
            pair.ranked.add_loss(pair.ranked.admit(broken, SPEC), SPEC, 3)
        assert (caught.value.status, caught.value.problem.reason) == (409, "NonFiniteLoss")
    local.add_loss(local.admit(batch, SPEC), SPEC, 3)
    expected = content(written(local, tmp_path / "one"))
    for name, value in content(written(pair.ranked, tmp_path / "two")).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_a_rank_without_work_takes_part(pair: Pair, local: LocalCompute) -> None:
    batch = data(pair.policy)[:1]
    ranked, alone = (c.score(c.admit(batch)) for c in (pair.ranked, local))
    assert ranked[0] == pytest.approx(alone[0], abs=1e-5)
    assert pair.ranked.score(pair.ranked.admit([])) == []
    added = pair.ranked.add_loss(pair.ranked.admit(batch, SPEC), SPEC, None)
    assert added.tally.tokens == len(batch[0].output)
    local.add_loss(local.admit(batch, SPEC), SPEC, None)
    norms = [compute.propose(STEP).gradient_norm for compute in (pair.ranked, local)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_rows_of_any_length_and_activation_checkpointing_give_the_same_gradient(
    pair: Pair, local: LocalCompute
) -> None:
    batch = data(pair.policy)
    norms = []
    for cut in (None, Cut(1, checkpointing=True), Cut(30, checkpointing=False)):
        cuts = () if cut is None else (cut, dataclasses.replace(cut, row_tokens=20))
        pair.ranked.add_loss(pair.ranked.admit(batch, SPEC, cuts), SPEC, 3)
        norms.append(pair.ranked.propose(STEP).gradient_norm)
        pair.ranked.drop_gradients()
    local.add_loss(local.admit(batch, SPEC), SPEC, 3)
    assert norms == pytest.approx([local.propose(STEP).gradient_norm] * 3, rel=1e-5)


def test_a_full_volume_refuses_the_step_and_the_ranks_go_on(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.ranked.add_loss(pair.ranked.admit(data(pair.policy), SPEC), SPEC, 3)
    proposal = pair.ranked.propose(STEP)

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as fault:
        fault.setattr(tensor_files, "save_file", no_space)
        with pytest.raises((OSError, SafetensorError)):
            pair.ranked.write(proposal, tmp_path)
    again = pair.ranked.propose(STEP)
    assert again.gradient_norm == proposal.gradient_norm
    pair.ranked.write(again, tmp_path)
    assert weights_of(tmp_path).keys() == pair.policy.parameters.keys()
