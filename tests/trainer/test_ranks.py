"""Two real ranks give one rank's results; whatever breaks in one is seen and named."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist
from dev.ports import free_port
from tests.tinker.messages import forward_backward
from tests.trainer import tinker, tiny
from tests.trainer.tiny import Volume

from espalier.api.model.adapter import Adapter
from espalier.api.wire.step import OptimStepRequest
from espalier.tinker import messages_pb2 as pb
from espalier.trainer.batch.data import Datum, datums
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.batch.step_metrics import answer_metrics, checkpoint_metrics
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.compute.interface import Compute
from espalier.trainer.engine.explicit_command import explicit_command
from espalier.trainer.engine.gradient_commands import LossCommand, gradient_command
from espalier.trainer.memory.planner import Cut
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError
from espalier.trainer.ranks import meeting, this_rank
from espalier.trainer.ranks.control import RankLostError
from espalier.trainer.ranks.this_rank import SECRET, read_world
from espalier.trainer.volume.checkpoint_store import Verified
from espalier.trainer.volume.command_log import CommandLog
from espalier.unchanged import note

STEP = OptimStepRequest(learning_rate=1e-2)
# With a tiny eps Adam's first steps are the signs of gradients, be they but rounding errors.
GENTLE = OptimStepRequest(learning_rate=1e-3, eps=1e-6)
SPEC = loss_spec("importance_sampling", None)
READY_SECONDS = 120
# For every call here; gloo may need as long to tell that a killed rank is gone (ranks/control.py).
REPLY_SECONDS = 60


def environment(volume: Volume, adapter: Adapter = tiny.ADAPTER, **changes: str) -> dict[str, str]:
    return {
        **os.environ,
        "ESPALIER_MODEL": tiny.MODEL,
        "ESPALIER_NAMESPACE": "default",
        "ESPALIER_POD_UID": "uid-1",
        "ESPALIER_VOLUME": str(volume.path),
        "ESPALIER_BASE": volume.base,
        "ESPALIER_PUBLIC_KEYS": '{"operator": "unused", "gateway": "unused"}',
        "ESPALIER_ADAPTER": json.dumps(adapter.wire()),
        "OMP_NUM_THREADS": "1",
        **changes,
    }


def lost(error: RankLostError) -> NoReturn:
    raise error


@dataclass
class Pair:
    """Rank 0 in this process, rank 1 in another."""

    ranked: Compute
    policy: Policy
    rank_1: subprocess.Popen[bytes]


def start(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, adapter: Adapter = tiny.ADAPTER
) -> Iterator[Pair]:
    port = str(free_port())
    shared = {"WORLD_SIZE": "2", "MASTER_PORT": port, SECRET: "s"}
    shared[this_rank.REPLY_SECONDS] = str(REPLY_SECONDS)
    rank_1 = subprocess.Popen(
        # Not at every address, where others' pods listen too.
        [sys.executable, "-m", "espalier.trainer", "--host", "127.0.0.1", "--port", "0"],
        env=environment(volume, adapter, RANK="1", **shared),
    )
    for name, value in {**shared, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    world = read_world(os.environ)
    control = meeting.meet(world)
    policy = tiny.policy(volume.path, volume.base, adapter, world.size)
    try:
        ranked = meeting.lead(policy, control, lost)
        yield Pair(ranked, policy, rank_1)
    finally:
        dist.destroy_process_group()
        rank_1.kill()
        rank_1.wait()


@pytest.fixture(scope="module")
def lasting(tiny_base: Volume) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from start(tiny_base, monkeypatch)


@pytest.fixture
def pair(lasting: Pair) -> Pair:
    lasting.ranked.reset()
    lasting.ranked.drop_gradients()
    return lasting


@pytest.fixture
def local(policy: Policy) -> Compute:
    return LocalCompute(policy)


def data(policy: Policy, seed: int = 0) -> list[Datum]:
    request = tiny.forward_backward(seed)
    return datums(request, policy.limits, policies_compared=True)


def test_log_probs_and_steps_are_those_of_one_rank(pair: Pair, local: Compute) -> None:
    generator = random.Random(0)
    steps = []
    for compute in (local, pair.ranked):
        generator.seed(0)
        outcome: list[torch.Tensor] = []
        for seed in range(3):
            batch = tiny.at(0.7, data(pair.policy, seed))
            scored = compute.score(compute.admit(batch), keep=f"forward-{seed}")
            weights = [[generator.uniform(-1, 1) for _ in row] for row in scored]
            outcome += [torch.tensor(row) for row in scored]
            added = compute.add_weights(
                compute.admit(batch),
                weights,
                given={"own": 1.0},
                group_size=3,
                forward=f"forward-{seed}",
            )
            tally = added.tally
            tally += compute.add_loss(compute.admit(batch, SPEC), SPEC, 3).tally
            # A prompt that two ranks share is computed twice, so this one figure may differ.
            tally = dataclasses.replace(tally, unique=0)
            figures = checkpoint_metrics(tally) | answer_metrics(tally)
            outcome += [torch.tensor(value) for _, value in sorted(figures.items())]
            proposal = compute.propose(GENTLE)
            compute.install(proposal)
            compute.drop_gradients()
            outcome.append(torch.tensor(proposal.gradient_norm))
            outcome += [value for _, value in sorted(proposal.tensors().items())]
        steps.append(outcome)
    assert len(steps[0]) == len(steps[1])
    for one, two in zip(*steps, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def test_log_probs_told_with_a_gradient_are_those_of_one_rank(pair: Pair, local: Compute) -> None:
    """As Tinker's clients are told them: of every datum, in the order that it was sent in."""
    bodies = [
        forward_backward(1, tinker.batch(count=count), forward_only=only)
        for count in (1, 5)
        for only in (False, True)
    ]
    for body in bodies:
        outputs = []
        for compute in (local, pair.ranked):
            command = explicit_command(compute, body)
            if command.forward_only:
                told = command.forward(compute)
            else:
                told = command.told(command.run(compute))
            outputs.append(pb.ForwardBackwardOutput.FromString(told.result))
        alone, ranked = ([lp for row in tinker.logprobs(one) for lp in row] for one in outputs)
        assert ranked == pytest.approx(alone, abs=1e-5)
        figures = [dict(one.metrics) for one in outputs]
        assert figures[1] == pytest.approx(figures[0], rel=1e-5, abs=1e-6)


def test_the_same_ranks_give_the_same_bits_again(pair: Pair) -> None:
    found = []
    for _ in range(2):
        pair.ranked.reset()
        pair.ranked.drop_gradients()
        pair.ranked.add_loss(pair.ranked.admit(data(pair.policy), SPEC), SPEC, 3)
        proposal = pair.ranked.propose(STEP)
        found.append({**proposal.parameters, **proposal.moments.tensors()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_proposal_changes_nothing_and_can_be_repeated(pair: Pair) -> None:
    pair.ranked.add_loss(pair.ranked.admit(data(pair.policy), SPEC), SPEC, 3)
    before = {name: value.detach().clone() for name, value in pair.policy.parameters.items()}
    first, second = (pair.ranked.propose(STEP) for _ in range(2))
    assert all(torch.equal(before[n], value) for n, value in pair.policy.parameters.items())
    assert all(torch.equal(first.parameters[n], second.parameters[n]) for n in first.parameters)


def test_an_error_of_any_rank_is_the_same_command_error_and_training_goes_on(pair: Pair) -> None:
    batch = data(pair.policy)
    for bad in range(len(batch)):
        broken = [
            dataclasses.replace(datum, advantage=math.inf) if index == bad else datum
            for index, datum in enumerate(batch)
        ]
        with pytest.raises(CommandError, match="NonFiniteLoss") as caught:
            pair.ranked.add_loss(pair.ranked.admit(broken, SPEC), SPEC, 3)
        assert caught.value.status == 409
    pair.ranked.drop_gradients()
    pair.ranked.add_loss(pair.ranked.admit(batch, SPEC), SPEC, 3)
    assert pair.ranked.propose(STEP).finite


def test_no_rank_needs_to_have_work(pair: Pair, local: Compute) -> None:
    batch = data(pair.policy)[:1]
    ranked, alone = (c.score(c.admit(batch)) for c in (pair.ranked, local))
    assert ranked[0] == pytest.approx(alone[0], abs=1e-5)
    assert pair.ranked.score(pair.ranked.admit([])) == []
    added = pair.ranked.add_loss(pair.ranked.admit(batch, SPEC), SPEC, None)
    assert added.tally.tokens == len(batch[0].output)


@pytest.mark.parametrize("checkpoint", [None, "near"])
def test_a_reference_and_a_divided_step_are_those_of_one_rank(
    pair: Pair, local: Compute, tmp_path: Path, checkpoint: str | None
) -> None:
    log, near = CommandLog(tmp_path / "log"), tmp_path / "near"
    near.mkdir()
    local.add_loss(local.admit(data(pair.policy), SPEC), SPEC, 3)
    local.write(local.propose(tiny.optim_step()), near)
    local.drop_gradients()
    held = Verified("near", near, {}, note(near))
    reference = {"reference": "Checkpoint" if checkpoint else "Base", "checkpoint": checkpoint}
    request = tiny.forward_backward(
        aggregation="SequenceMean", kl={"coefficient": 0.1, **reference}
    )
    found = []
    for compute in (local, pair.ranked):
        command = gradient_command(compute, log, request, find=lambda _: held)
        assert isinstance(command, LossCommand)
        assert command.reference is not None
        added = command.run(compute)
        step = compute.propose(tiny.optim_step(), added.tally.step_factor)
        figures = checkpoint_metrics(added.tally)
        found.append(
            [step.gradient_norm, figures["policy/reference_kl"], figures["loss/sum"]]
            + [value for row in compute.refer(command.reference).logprobs for value in row]
        )
        # Both passes are cut, on each rank.
        assert len(added.cuts) == 2 * (1 if compute is local else 2)
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6)


def test_ranks_use_the_cuts_of_a_logged_call(pair: Pair) -> None:
    batch = data(pair.policy)
    cuts = (Cut(1, checkpointing=False), Cut(30, checkpointing=True))
    whole = pair.ranked.admit(batch, SPEC)
    replayed = pair.ranked.admit(batch, SPEC, cuts)
    assert [plan.cut for plan in replayed.plans] == list(cuts)
    added = pair.ranked.add_loss(replayed, SPEC, 3)
    assert added.cuts == cuts
    assert added.tally.loss == pytest.approx(
        pair.ranked.add_loss(whole, SPEC, 3).tally.loss, rel=1e-5
    )


def test_ranks_that_hold_other_weights_are_named(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.ranked.add_loss(pair.ranked.admit(data(pair.policy), SPEC), SPEC, 3)
    name = next(iter(pair.policy.parameters))
    with torch.no_grad():
        pair.policy.parameters[name].add_(1e-6)
    monkeypatch.setattr("espalier.trainer.ranks.rank0.STEPS_PER_DIGEST", 1)
    with pytest.raises(RankLostError, match=r"ranks \[1\] hold other weights"):
        pair.ranked.propose(STEP)


@pytest.mark.parametrize("call", ["score", "propose"])
def test_a_rank_that_dies_is_named(call: str, lasting: Pair) -> None:
    """Last, since the rank is gone then."""
    lasting.rank_1.kill()
    lasting.rank_1.wait()
    with pytest.raises(RankLostError, match=r"rank 1|gone: \[1\]"):
        if call == "score":
            lasting.ranked.score(lasting.ranked.admit(data(lasting.policy)))
        else:
            lasting.ranked.propose(STEP)


def launch(volume: Volume, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "espalier.trainer.ranks", "--ranks", "2", "--port", "0"],
        env=environment(volume, **changes),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def read_until(launched: subprocess.Popen[str], words: tuple[str, ...]) -> list[str]:
    """Lines until each of the words was in one; the test's timeout bounds the wait."""
    assert launched.stderr is not None
    lines: list[str] = []
    while not all(any(word in line for line in lines) for word in words):
        line = launched.stderr.readline()
        assert line, f"ended before it said {words}: {lines}"
        lines.append(line)
    return lines


def process_of(rank: int, lines: list[str]) -> int:
    said = next(line for line in lines if f"rank {rank} of 2 is process" in line)
    return int(said.split("is process ")[1].split('"')[0])


def test_a_killed_rank_ends_all_and_says_which_while_sigterm_ends_in_order(volume: Volume) -> None:
    ready = ('"ready"', "rank 1 of 2 is process")
    for rank, number, code, ended in (
        (1, signal.SIGKILL, 137, True),
        (None, signal.SIGTERM, 0, False),
    ):
        launched = launch(volume)
        lines = read_until(launched, ready)
        processes = [process_of(each, lines) for each in (0, 1)]
        os.kill(launched.pid if rank is None else processes[rank], number)
        _, rest = launched.communicate(timeout=READY_SECONDS)
        assert launched.returncode == code
        assert ("rank 1 ended with -9, so all ranks were ended" in rest) == ended
        assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_a_users_mistake_keeps_its_exit_code(volume: Volume) -> None:
    launched = launch(volume, ESPALIER_DTYPE="float8")
    launched.communicate(timeout=READY_SECONDS)
    assert launched.returncode == 64
