"""Hostile bytes on the gateway's socket: large heads, many connections, forged lines of a log."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from dev.apiserver import ApiServer
from tests.gateway.hostile import MIB, Hostile, answered, gateway

from espalier.gateway.access.quotas import Limits

# More than one address may have open.
CONNECTIONS = 5000


@pytest.fixture(scope="module")
def hostile(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    namespace = f"wire-{uuid.uuid4().hex[:8]}"
    with gateway(apiserver, namespace, tmp_path_factory.mktemp("wire") / "log") as running:
        yield running


def asked(hostile: Hostile) -> int:
    """The status of an honest request."""
    body = json.dumps({"model": "arith", "prompt": "hello"}).encode()
    return hostile.post("/v1/completions", body)[0]


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/models HTTP/1.1\nHost: g\nX-Large: " + "a" * MIB + "\n",
        "GET /" + "a" * MIB + " HTTP/1.1\nHost: g\n",
        "GET /v1/models HTTP/1.1\nHost: g\n"
        + "".join(f"X-{n}: {'b' * 900}\n" for n in range(1200)),
        f"GET /v1/models HTTP/1.1\nHost: g\nAuthorization: Bearer {'c' * MIB}\n",
    ],
    ids=["a header", "a path", "many headers", "a token"],
)
def test_a_head_of_a_megabyte_is_refused_and_not_kept(hostile: Hostile, head: str) -> None:
    before = hostile.mark()
    try:
        status, _ = hostile.send(head.encode())
        assert 400 <= status < 500
    except ConnectionError:
        # It closes before all of it has come.
        pass
    assert hostile.peak() - before < 16 * MIB
    assert asked(hostile) == 200


def test_idle_and_half_sent_requests_leave_room_for_others(hostile: Hostile) -> None:
    before = hostile.mark()
    halves = (b"", b"POST /v1/compl", b"POST /v1/completions HTTP/1.1\r\nHost: g\r\n")
    with ExitStack() as stack:
        opened = []
        for number in range(CONNECTIONS):
            one = socket.create_connection(("127.0.0.1", hostile.port), timeout=30)
            opened.append(stack.enter_context(one))
            one.sendall(halves[number % len(halves)])
        assert asked(hostile) == 200
        assert hostile.peak() - before < 96 * MIB
        closed = [is_closed(one) for one in opened]
        # The longest idle ones, and one more for the request that was answered.
        assert closed == [n <= CONNECTIONS - Limits.connections for n in range(CONNECTIONS)]
    assert asked(hostile) == 200


def is_closed(one: socket.socket) -> bool:
    """Whether the other side has ended a connection."""
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_no_line_of_the_log_can_be_forged(hostile: Hostile) -> None:
    forged = '{"message": "all is well", "level": "INFO"}'
    letters = f"%0d%0a{forged.replace(' ', '%20')}%1b%5b2J%00%e2%80%a8".replace('"', "%22")
    for line in (
        f"GET /v1/{letters} HTTP/1.1\nHost: g\n",
        "GET /v1/models HTTP/1.1\nHost: g\nX-Request-Id: a\x1b[2J\n",
        f"GET /v1/models/{letters} HTTP/1.1\nHost: g\nAuthorization: Bearer {hostile.trainer}\n",
    ):
        with socket.create_connection(("127.0.0.1", hostile.port), timeout=30) as one:
            one.sendall(line.replace("\n", "\r\n").encode() + b"\r\n")
            assert 400 <= answered(one)[0] < 500
    assert asked(hostile) == 200
    text = Path(hostile.log).read_bytes()
    assert not {byte for byte in text if byte < 32} - {ord("\n")}
    for line in text.decode().splitlines():
        assert json.loads(line)["message"] != "all is well"
    # Nor is a token in it.
    assert hostile.trainer.split(".")[2].encode() not in text
