"""What two workers, or two test runs, could both take is given to one of them."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from dev import ports

TAKES_ONE = "from dev.ports import own_network; print(own_network({port}), flush=True); input()"


def test_a_network_is_of_one_process_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    port = ports.free_port()
    command = [sys.executable, "-c", TAKES_ONE.format(port=port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:  # type: ignore[call-overload]
        theirs = other.stdout.readline().strip()
        _, second, third = theirs.split(".")
        # This process draws theirs for ever, and then the one after it.
        wanted = iter([int(third)] * (ports.TRIES - 1) + [(int(third) + 1) % 255])
        monkeypatch.setattr(ports._random, "choice", lambda _: int(second))
        monkeypatch.setattr(ports._random, "randrange", lambda _: next(wanted))
        assert ports.own_network(port) != theirs
        other.communicate("\n", timeout=30)
    monkeypatch.setattr(ports._random, "randrange", lambda _: int(third))
    assert ports.own_network(port) == theirs


def test_servers_of_a_network_listen_on_the_port_that_it_was_claimed_for() -> None:
    port = ports.free_port()
    network = ports.own_network(port)
    for host in (1, 2, 253):
        with socket.create_server((f"{network}.{host}", port)):
            pass


def test_a_machine_without_a_free_network_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    port = ports.free_port()
    with socket.create_server(("", port)), pytest.raises(OSError, match=f"port {port} is in use"):
        ports.own_network(port)
