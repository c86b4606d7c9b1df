"""kill -9 anywhere: nothing that was acknowledged is lost, nothing is applied twice.

The engine runs in a forked child that dies by SIGKILL before or after the n-th call of a function
that changes the volume or the weights. The client resends what was not acknowledged, with the same
key. Whatever happened, the digests of all commits (weights, Adam's state, metrics, cursor) must be
those of the uninterrupted training.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer import tiny
from tests.trainer.forking import in_a_fork
from tests.trainer.tiny import Volume

from espalier.api.wire.base import Wire
from espalier.api.wire.gradients import BackwardRequest, ForwardResult
from espalier.trainer.engine.commands import Empty
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.policy.policy import Policy
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog, Kind

# A killed process loses nothing that it wrote, so memory serves as well as a disk here.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
NEAR_THE_BASE = {"coefficient": 0.1, "reference": "Base"}
SCRIPT: list[tuple[Kind, Wire]] = [
    ("forward-backward", tiny.forward_backward(0)),
    ("forward-backward", tiny.forward_backward(1, entropy_coefficient=0.01, kl=NEAR_THE_BASE)),
    ("optim-step", tiny.optim_step(cursor={"next": 1})),
    ("forward-backward", tiny.forward_backward(2)),
    ("zero-grad", Empty()),
    ("forward-backward", tiny.forward_backward(3, aggregation="TokenMean")),
    ("optim-step", tiny.optim_step(cursor={"next": 2}, rollouts=[{"reward": 1.0}])),
]


# A loss of the client's own: what it sends back follows from the log-probs that it was told.
CUSTOM: list[tuple[Kind, Wire | None]] = [
    ("forward", tiny.forward(0)),
    ("backward", None),
    ("forward", tiny.forward(1, reference="base")),
    ("backward", None),
    ("optim-step", tiny.optim_step(cursor={"next": 1})),
    ("forward", tiny.forward(2)),
    ("backward", None),
    ("optim-step", tiny.optim_step(cursor={"next": 2})),
]


def pulls(told: ForwardResult) -> BackwardRequest:
    """The backward of a loss: the further a token is from the sampler's, the more it weighs."""
    weights = [
        [
            0.1 * (new - old) * kept
            for new, old, kept in zip(one.logprobs, one.sampling_logprobs, one.mask, strict=True)
        ]
        for one in told.data
    ]
    return BackwardRequest(forward_id=told.forward_id, weights=weights, metrics={"pull": 1.0})


def points() -> list[tuple[Any, str]]:
    """The functions before and after which the process may die."""
    return [
        (CommandLog, "assign"),
        (CommandLog, "begin"),
        (CommandLog, "finish"),
        (CommandLog, "settle"),
        (CommandLog, "commit"),
        (CommandLog, "_end_pending"),
        (CommandLog, "_drop_bodies"),
        (CheckpointStore, "commit"),
        (Path, "rename"),
        (Policy, "evaluate"),
        (TrainingState, "drop_gradients"),
    ]


class Fuse:
    """Kills this process at the n-th point that it passes (never: -1)."""

    def __init__(self, kill_at: int) -> None:
        self.passed = 0
        self.kill_at = kill_at

    def arm(self) -> None:
        for owner, name in points():
            setattr(owner, name, self._wrap(getattr(owner, name)))

    def _pass(self) -> None:
        if self.passed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self._pass()
            result = function(*arguments, **keywords)
            self._pass()
            return result

        return wrapped


def acknowledged(volume: Volume) -> list[str]:
    """The answers that the client has, to the first commands of the script."""
    path = volume.path / "acknowledged"
    return path.read_text().splitlines() if path.exists() else []


def acknowledge(volume: Volume, answer: str = "") -> None:
    """The client has an answer to one more."""
    with (volume.path / "acknowledged").open("a") as file:
        file.write(f"{answer}\n")


def live(
    volume: Volume,
    policy: Policy,
    kill_at: int,
    script: Sequence[tuple[Kind, Wire | None]] = SCRIPT,
) -> tuple[bool, int]:
    """One life of the trainer: whether it came to the end, and the points it passed (if so)."""

    def work() -> None:
        engine = tiny.engine(volume.path, volume.base, policy)
        engine.assign(tiny.assignment())
        answers = acknowledged(volume)
        for seq in range(len(answers), len(script)):
            kind, request = script[seq]
            if request is None:
                request = pulls(ForwardResult.model_validate_json(answers[-1]))
            answer = tiny.send(engine, kind, request, ("client", seq), term=1)
            assert answer.status == 200
            acknowledge(volume, answer.body)
            answers.append(answer.body)

    return lived(volume, Fuse(kill_at), work)


def lived(volume: Volume, fuse: Fuse, work: Callable[[], None]) -> tuple[bool, int]:
    """A life with a fuse: whether it came to the end, and the points it passed (if so)."""
    counter = volume.path / "passed"

    def life() -> None:
        fuse.arm()
        work()
        counter.write_text(str(fuse.passed))

    status = in_a_fork(life)
    if status == -signal.SIGKILL:
        return False, fuse.kill_at
    assert status == 0, "the trainer failed instead of recovering"
    return True, int(counter.read_text())


def outcome(volume: Volume, policy: Policy) -> tuple[list[str], dict[str, torch.Tensor], object]:
    """What is left at the end, as a fresh process sees it."""
    engine = tiny.engine(volume.path, volume.base, policy)
    try:
        digests = [commit.digest for commit in engine.state.commits]
        for digest in digests:
            engine.state.store.verify("checkpoint", digest)
        weights = {n: p.detach().clone() for n, p in policy.parameters.items()}
        return digests, weights, engine.state.report()
    finally:
        engine.state.log.close()


@pytest.fixture(scope="module")
def straight(new_volume: Callable[[], Volume], shared_policy: Policy) -> tuple[Any, int]:
    """The uninterrupted training: its outcome and how many points it passes."""
    volume = new_volume()
    ended, passed = live(volume, shared_policy, -1)
    assert ended
    result = outcome(volume, shared_policy)
    assert len(result[0]) == 2
    return result, passed


def fresh(tiny_base: Volume, path: Path) -> Volume:
    (path / "bases").symlink_to(tiny_base.path / "bases")
    return Volume(path, tiny_base.base)


@pytest.fixture(scope="module")
def new_volume(tiny_base: Volume) -> Iterator[Callable[[], Volume]]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:

        def make() -> Volume:
            return fresh(tiny_base, Path(tempfile.mkdtemp(dir=directory)))

        yield make


def survive(volume: Volume, policy: Policy, kills: list[int]) -> None:
    for kill_at in kills:
        if live(volume, policy, kill_at)[0]:
            return
    assert live(volume, policy, -1)[0]


def assert_same(volume: Volume, policy: Policy, expected: Any) -> None:
    digests, weights, state = outcome(volume, policy)
    assert digests == expected[0]
    assert all(torch.equal(weights[name], value) for name, value in expected[1].items())
    assert state == expected[2]
    names = {path.name for path in (volume.path / "checkpoints" / tiny.MODEL).iterdir()}
    assert names == {digest.replace(":", "-") for digest in digests}


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_at_every_nth_point_it_ends_as_if_never_killed(
    new_volume: Callable[[], Volume], shared_policy: Policy, straight: tuple[Any, int], every: int
) -> None:
    expected, passed = straight
    assert passed > 60
    for kill_at in range(0, passed, every):
        volume = new_volume()
        survive(volume, shared_policy, [kill_at])
        assert_same(volume, shared_policy, expected)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_within_the_steps_of_a_clients_own_loss_it_ends_as_if_never_killed(
    new_volume: Callable[[], Volume], shared_policy: Policy, every: int
) -> None:
    volume = new_volume()
    ended, passed = live(volume, shared_policy, -1, CUSTOM)
    assert ended
    expected = outcome(volume, shared_policy)
    assert len(expected[0]) == 2
    died_after = set()
    for kill_at in range(0, passed, every):
        volume = new_volume()
        assert not live(volume, shared_policy, kill_at, CUSTOM)[0]
        died_after.add(len(acknowledged(volume)))
        assert live(volume, shared_policy, -1, CUSTOM)[0]
        assert_same(volume, shared_policy, expected)
    # Between a forward, whose graph died with the process, and its backward.
    assert {1, 3, 6} <= died_after


@settings(max_examples=12, deadline=None, derandomize=True)
@given(kills=st.lists(st.integers(0, 60), min_size=2, max_size=5))
def test_killed_again_and_again_it_ends_as_if_never_killed(
    kills: list[int],
    new_volume: Callable[[], Volume],
    shared_policy: Policy,
    straight: tuple[Any, int],
) -> None:
    volume = new_volume()
    survive(volume, shared_policy, kills)
    assert_same(volume, shared_policy, straight[0])


def test_an_unacknowledged_command_that_is_never_resent_has_no_effect(
    new_volume: Callable[[], Volume], shared_policy: Policy, straight: tuple[Any, int]
) -> None:
    """A client without keys starts its step anew; a dead command must not count as well."""
    generator = random.Random(0)
    for _ in range(6):
        volume = new_volume()
        live(volume, shared_policy, generator.randrange(straight[1]))
        engine = tiny.engine(volume.path, volume.base, shared_policy)
        engine.assign(tiny.assignment())
        pending = engine.state.report().pending
        done = SCRIPT[: len(acknowledged(volume)) + 1]
        steps = sum(kind == "optim-step" for kind, _ in done)
        assert len(engine.state.commits) in (steps, max(0, steps - 1))
        assert pending <= 2
        assert engine.state.log.unfinished() == []
        engine.state.log.close()
