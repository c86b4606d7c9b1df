"""kill -9 anywhere between a command's arrival and its result: nothing is lost, or done twice.

As test_crash, with the commands of Tinker's clients: they are accepted out of order and resent
until they are, one of them fails, and the trainer works through its inbox in each of its lives.
Digests, weights and every result must be those of the uninterrupted training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tinker.messages import MODEL_ID
from tests.trainer import tinker, tiny
from tests.trainer.test_crash import Fuse, acknowledge, acknowledged, lived, new_volume
from tests.trainer.tiny import Volume

from espalier.trainer.policy.policy import Policy
from espalier.trainer.volume.command_log import CommandLog, Key, Kind
from espalier.trainer.volume.inbox import Inbox

__all__ = ["new_volume"]

Sent = tuple[int, Kind, bytes]
OVERFLOWS = tinker.datum(
    tinker.Explicit([1, 2], [2, 3], {"logprobs": [0, -1e30], "advantages": [0, 1]})
)
SCRIPT: list[Sent] = [
    tinker.gradients(2, seed=2),
    tinker.gradients(1, seed=1),
    (3, "tinker-forward-backward", tinker.forward_backward(3, tinker.batch(), forward_only=True)),
    tinker.step(4),
    (5, "save-weights", tinker.save(5)),
    tinker.gradients(6, seed=6),
    (7, "tinker-forward-backward", tinker.forward_backward(7, [OVERFLOWS])),
    tinker.step(8),
    tinker.step(10),
    tinker.gradients(9, seed=9),
]
POINTS = [
    (Inbox, "accept"),
    (CommandLog, "begin_queued"),
    (CommandLog, "accumulate"),
    (CommandLog, "refuse"),
]


class QueueFuse(Fuse):
    def arm(self) -> None:
        super().arm()
        for owner, name in POINTS:
            setattr(owner, name, self._wrap(getattr(owner, name)))


def live(volume: Volume, policy: Policy, kill_at: int) -> tuple[bool, int]:
    """One life of the trainer: whether it came to the end, and the points that it passed."""

    def work() -> None:
        engine = tiny.engine(volume.path, volume.base, policy)
        engine.assign(tiny.assignment())
        tinker.work(engine)
        for number in range(len(acknowledged(volume)), len(SCRIPT)):
            tinker.accept(engine, *SCRIPT[number])
            acknowledge(volume)
            tinker.work(engine)

    return lived(volume, QueueFuse(kill_at), work)


def outcome(volume: Volume, policy: Policy) -> tuple[Any, ...]:
    """What a fresh process finds: commits, the state, every answer and result, and weights."""
    engine = tiny.engine(volume.path, volume.base, policy)
    try:
        digests = [commit.digest for commit in engine.state.commits]
        answers = []
        for seq in range(1, len(SCRIPT) + 1):
            record = engine.state.log.find(Key(MODEL_ID, seq))
            assert record is not None
            answer = record.answer.replace(str(volume.path), "")
            answers.append((record.status, answer, engine.state.log.result(record)))
        assert engine.state.log.inbox.waiting(MODEL_ID) == []
        weights = {n: p.detach().clone() for n, p in policy.parameters.items()}
        return digests, engine.state.report(), answers, weights
    finally:
        engine.state.log.close()


@pytest.fixture(scope="module")
def straight(new_volume: Callable[[], Volume], shared_policy: Policy) -> tuple[Any, int]:
    volume = new_volume()
    ended, passed = live(volume, shared_policy, -1)
    assert ended
    result = outcome(volume, shared_policy)
    assert [status for status, _, _ in result[2]] == [200] * 6 + [409, 409, 200, 200]
    assert len(result[0]) == 2
    return result, passed


def survive(volume: Volume, policy: Policy, kills: Iterator[int]) -> None:
    for kill_at in kills:
        if live(volume, policy, kill_at)[0]:
            return
    assert live(volume, policy, -1)[0]


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert found[:3] == expected[:3]
    assert all(torch.equal(found[3][name], value) for name, value in expected[3].items())


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_at_every_nth_point_the_queue_ends_as_if_never_killed(
    new_volume: Callable[[], Volume], shared_policy: Policy, straight: tuple[Any, int], every: int
) -> None:
    expected, passed = straight
    assert passed > 100
    for kill_at in range(0, passed, every):
        volume = new_volume()
        survive(volume, shared_policy, iter([kill_at]))
        assert_same(outcome(volume, shared_policy), expected)


@settings(max_examples=4)
@given(kills=st.lists(st.integers(0, 90), min_size=2, max_size=5))
def test_killed_again_and_again_the_queue_ends_as_if_never_killed(
    kills: list[int],
    new_volume: Callable[[], Volume],
    shared_policy: Policy,
    straight: tuple[Any, int],
) -> None:
    volume = new_volume()
    survive(volume, shared_policy, iter(kills))
    assert_same(outcome(volume, shared_policy), straight[0])


def test_bodies_of_a_killed_trainer_do_not_pile_up(
    new_volume: Callable[[], Volume], shared_policy: Policy, straight: tuple[Any, int]
) -> None:
    volume = new_volume()
    survive(volume, shared_policy, iter(range(5, straight[1], straight[1] // 4)))
    assert list((Path(volume.path) / "models" / tiny.MODEL / "bodies").iterdir()) == []
