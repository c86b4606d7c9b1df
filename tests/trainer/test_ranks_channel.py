"""The control channel between ranks, over real sockets."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from espalier.trainer.problems import UserMistakeError
from espalier.trainer.ranks.channel import Channel, RankLostError, accept, connect, listen
from espalier.trainer.ranks.this_rank import SECRET, World, read_world

HOST = "127.0.0.1"
SECONDS = 60.0


def pair() -> tuple[Channel, Channel]:
    with listen(HOST) as listener, ThreadPoolExecutor(1) as pool:
        other = pool.submit(connect, HOST, listener.getsockname()[1], 1, b"secret")
        (channel,) = accept(listener, 2, b"secret", SECONDS)
        return channel, other.result()


def test_frames_of_any_size_arrive_whole_and_in_order() -> None:
    root, rank = pair()
    frames = [b"", b"x", bytes(3_000_000), b"end"]
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lambda: [root.send(frame, SECONDS) for frame in frames])
        assert [rank.receive(SECONDS) for _ in frames] == frames
        sent.result()


def test_a_silent_rank_is_named_with_the_time_that_it_was_given() -> None:
    root, _rank = pair()
    with pytest.raises(RankLostError, match=r"rank 1 did not answer within 0\.05 s"):
        root.receive(0.05)
    assert not root.gone


def test_a_rank_that_ends_is_noticed() -> None:
    root, rank = pair()
    rank._connection.close()
    with pytest.raises(RankLostError, match="rank 1 is gone"):
        root.receive(SECONDS)
    assert root.gone


def test_strangers_are_turned_away_and_the_rank_is_still_admitted() -> None:
    with listen(HOST) as listener, ThreadPoolExecutor(1) as pool:
        port = listener.getsockname()[1]
        accepted = pool.submit(accept, listener, 2, b"secret", SECONDS)
        socket.create_connection((HOST, port)).close()
        with pytest.raises(RankLostError, match="rank 0 does not admit rank 1"):
            connect(HOST, port, 1, b"another secret")
        rank = connect(HOST, port, 1, b"secret")
        (channel,) = accepted.result()
        rank.send(b"here", SECONDS)
        assert channel.receive(SECONDS) == b"here"


def test_a_rank_does_not_obey_a_root_without_the_secret() -> None:
    with listen(HOST) as listener, ThreadPoolExecutor(1) as pool:

        def impostor() -> None:
            connection, _ = listener.accept()
            connection.sendall(bytes(32))
            connection.recv(1 << 10)
            connection.sendall(bytes(32))

        pool.submit(impostor)
        with pytest.raises(RankLostError, match="lacks the secret"):
            connect(HOST, listener.getsockname()[1], 1, b"secret")


def test_ranks_that_never_connect_are_named() -> None:
    with listen(HOST) as listener, pytest.raises(RankLostError, match=r"ranks \[1, 2\] did not"):
        accept(listener, 3, b"secret", 0.05)


def test_without_a_launcher_there_is_one_rank() -> None:
    assert read_world({}) == World()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "2", SECRET: "s"}, "RANK is 2"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, SECRET),
        ({"ESPALIER_RANK_SECONDS": "0"}, "ESPALIER_RANK_SECONDS"),
    ],
)
def test_a_wrong_environment_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserMistakeError, match=named):
        read_world(environment)
