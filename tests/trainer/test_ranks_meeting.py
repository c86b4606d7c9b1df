"""How real processes meet as ranks, and how each finds out that another is gone."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess

import pytest
import torch.distributed as dist
from dev.ports import free_port
from tests.listening import listeners
from tests.trainer.forking import nothing_collected

from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.ranks import meeting
from espalier.trainer.ranks.control import Control, RankLostError
from espalier.trainer.ranks.this_rank import LISTENER, SECRET, World, read_world

FORK = multiprocessing.get_context("fork")
SECONDS = 60.0
# For ranks that are not there: those that are must have met by then, on a busy machine too.
ABSENT_SECONDS = 5


@pytest.fixture(autouse=True)
def _forks() -> Iterator[None]:
    with nothing_collected():
        yield


def world(
    rank: int, port: int, *, size: int = 2, secret: str = "secret", seconds: float = SECONDS
) -> World:
    return World(rank, size, rank, port, secret, seconds)


def echo(world: World) -> None:
    """A rank that answers every message with the same."""
    control = meeting.meet(world)
    assert control is not None
    control.wait_for_all(SECONDS)
    while True:
        control.send(control.next_call(), 0)


def failure_of(world: World) -> str:
    """Why a rank did not meet the others."""
    try:
        meeting.meet(world, seconds=ABSENT_SECONDS)
    except RankLostError as error:
        return str(error)
    return "it met the others"


@contextmanager
def ranks(size: int = 2, seconds: float = SECONDS) -> Iterator[tuple[Control, list[BaseProcess]]]:
    """Rank 0's control, and the processes of the others."""
    port = free_port()
    others = [
        FORK.Process(target=echo, args=(world(rank, port, size=size, seconds=seconds),))
        for rank in range(1, size)
    ]
    try:
        for other in others:
            other.start()
        control = meeting.meet(world(0, port, size=size, seconds=seconds))
        assert control is not None
        control.wait_for_all(SECONDS)
        yield control, others
    finally:
        for other in others:
            other.kill()
            other.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def test_messages_of_any_size_arrive_whole_and_in_order() -> None:
    with ranks() as (control, _):
        for message in (b"", b"x", bytes(3_000_000), ("end", 0.1, float("inf"))):
            control.call(message, 1)
            assert control.receive(1) == message


def test_every_socket_is_on_the_loopback_interface() -> None:
    with ranks() as (_, others):
        for process in (os.getpid(), others[0].pid):
            assert {listener.address for listener in listeners(process or 0)} == {"127.0.0.1"}


def test_a_silent_rank_is_named_with_its_time_limit_which_an_idle_one_does_not_have() -> None:
    with ranks(seconds=5) as (control, (other,)):
        time.sleep(5.5)
        control.call("after a pause", 1)
        assert control.receive(1) == "after a pause"
        os.kill(other.pid or 0, signal.SIGSTOP)
        with pytest.raises(RankLostError, match=r"rank 1 is gone, or did not answer within 5 s"):
            control.receive(1)


def test_a_rank_that_ends_is_named_while_the_others_go_on() -> None:
    with ranks(size=3) as (control, others):
        others[1].kill()
        with pytest.raises(RankLostError, match="rank 2 is gone"):
            control.receive(2)
        control.call("still here", 1)
        assert control.receive(1) == "still here"
        assert control.gone() == [2]


def test_strangers_are_turned_away_and_the_rank_is_still_admitted() -> None:
    port = free_port()
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        stranger = pool.submit(failure_of, world(1, port, secret="another secret"))
        rank_1 = FORK.Process(target=echo, args=(world(1, port),))
        try:
            rank_1.start()
            control = meeting.meet(world(0, port))
            assert control is not None
            control.wait_for_all(SECONDS)
            socket.create_connection(("127.0.0.1", port)).close()
            assert "ranks [0] did not connect in 5 s" in stranger.result()
            control.call("hello", 1)
            assert control.receive(1) == "hello"
        finally:
            rank_1.kill()
            rank_1.join()
            dist.destroy_process_group()


def test_rank_0_serves_at_the_socket_that_its_launcher_has_opened() -> None:
    held = socket.create_server(("127.0.0.1", 0))
    port = held.getsockname()[1]
    rank_1 = FORK.Process(target=echo, args=(world(1, port),))
    try:
        rank_1.start()
        # Nobody else could open this port, this process included.
        control = meeting.meet(replace(world(0, port), listener=held.detach()))
        assert control is not None
        control.wait_for_all(SECONDS)
        control.call("hello", 1)
        assert control.receive(1) == "hello"
    finally:
        rank_1.kill()
        rank_1.join()
        dist.destroy_process_group()


def test_ranks_that_never_connect_are_named() -> None:
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        reason = pool.submit(failure_of, world(0, free_port(), size=3)).result()
    assert reason == "ranks [1, 2] did not connect in 5 s"


def test_a_second_process_of_the_same_rank_is_refused() -> None:
    port = free_port()
    with ProcessPoolExecutor(3, mp_context=FORK) as pool:
        each = [pool.submit(failure_of, world(rank, port, size=3)) for rank in (0, 1, 1)]
        reasons = [one.result() for one in each]
    assert "two processes say that they are rank 1 of 3" in reasons
    assert "ranks [2] did not connect in 5 s" in reasons


def test_a_refusal_arrives_as_it_was_raised() -> None:
    sent = CommandError(409, "NonFiniteLoss", "the loss is not finite", "look at the rewards")
    received = pickle.loads(pickle.dumps(sent))
    assert (received.status, received.problem) == (sent.status, sent.problem)


def test_without_a_launcher_there_is_one_rank() -> None:
    assert read_world({}) == World()


def test_a_launcher_may_pass_on_the_socket_where_ranks_meet() -> None:
    told = {"WORLD_SIZE": "2", "MASTER_PORT": "7000", SECRET: "s"}
    assert read_world(told).listener is None
    assert read_world({**told, LISTENER: "5"}).listener == 5


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "2", SECRET: "s"}, "RANK is 2"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, SECRET),
        ({"WORLD_SIZE": "2", "RANK": "1", SECRET: "s"}, "MASTER_PORT is 0"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node-7"}, "MASTER_ADDR is node-7"),
        ({"ESPALIER_RANK_SECONDS": "0"}, "ESPALIER_RANK_SECONDS"),
    ],
)
def test_a_wrong_environment_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserMistakeError, match=named):
        read_world(environment)
