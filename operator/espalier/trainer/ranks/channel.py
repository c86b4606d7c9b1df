"""The control channel: one TCP connection per rank, with authenticated ends and framed messages.

Ranks wait for work here and not in a collective, so that an idle trainer meets no watchdog.
Wire format: a handshake, then frames of an 8-byte big-endian length and that many bytes.
Handshake: rank 0 sends a nonce n; rank r answers r (4 bytes), a nonce m and
HMAC-SHA256(secret, "rank" n r m); rank 0 answers HMAC-SHA256(secret, "root" m n).
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import struct
import time

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
MAX_FRAME_BYTES = 1 << 31
_NONCE = 32
_LENGTH = struct.Struct(">Q")
_RANK = struct.Struct(">I")


class RankLostError(Exception):
    """A rank is gone, hangs or disagrees: only a restart of all ranks helps."""


class Channel:
    """The connection to ``peer``, a rank."""

    def __init__(self, connection: socket.socket, peer: int) -> None:
        self.peer = peer
        self._connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, frame: bytes, seconds: float) -> None:
        """Raises RankLostError if the peer is gone or takes nothing for that long."""
        try:
            self._connection.settimeout(seconds)
            self._connection.sendall(_LENGTH.pack(len(frame)) + frame)
        except OSError as error:
            raise RankLostError(f"rank {self.peer} takes no message ({error})") from error

    def receive(self, seconds: float | None) -> bytes:
        """The next frame; RankLostError if there is none within that time (None: wait on)."""
        try:
            length = _LENGTH.unpack(_exactly(self._connection, _LENGTH.size, seconds))[0]
            if length > MAX_FRAME_BYTES:
                raise RankLostError(f"rank {self.peer} announces {length} bytes")
            return _exactly(self._connection, length, seconds)
        except TimeoutError as error:
            raise RankLostError(
                f"rank {self.peer} did not answer within {seconds:g} s (ESPALIER_RANK_SECONDS)"
            ) from error
        except OSError as error:
            raise RankLostError(f"rank {self.peer} is gone ({error})") from error

    @property
    def gone(self) -> bool:
        """Whether the peer has closed the connection, as a process does when it ends."""
        try:
            self._connection.settimeout(0)
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True


def listen(host: str) -> socket.socket:
    """Rank 0's end, on a free port."""
    return socket.create_server((host, 0))


def accept(listener: socket.socket, size: int, secret: bytes, seconds: float) -> list[Channel]:
    """The channels to ranks 1 to size-1, in order; strangers are turned away."""
    channels: dict[int, Channel] = {}
    deadline = time.monotonic() + seconds
    while len(channels) < size - 1:
        missing = sorted(set(range(1, size)) - set(channels))
        listener.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            connection, address = listener.accept()
        except TimeoutError as error:
            raise RankLostError(f"ranks {missing} did not connect in {seconds:g} s") from error
        try:
            rank = _admit(connection, secret)
        except (OSError, ValueError) as error:
            logger.warning("turned %s away from the control channel: %s", address, error)
            connection.close()
            continue
        if rank not in missing:
            raise RankLostError(f"two processes say that they are rank {rank} of {size}")
        channels[rank] = Channel(connection, rank)
    return [channels[rank] for rank in range(1, size)]


def connect(host: str, port: int, rank: int, secret: bytes) -> Channel:
    """A rank's channel to rank 0."""
    try:
        connection = socket.create_connection((host, port), HANDSHAKE_SECONDS)
        theirs = _exactly(connection, _NONCE, HANDSHAKE_SECONDS)
        claim, ours = _RANK.pack(rank), secrets.token_bytes(_NONCE)
        connection.sendall(claim + ours + _sign(secret, b"rank", theirs + claim + ours))
        proof = _exactly(connection, len(_sign(secret, b"", b"")), HANDSHAKE_SECONDS)
    except OSError as error:
        raise RankLostError(f"rank 0 does not admit rank {rank} ({error})") from error
    if not hmac.compare_digest(proof, _sign(secret, b"root", ours + theirs)):
        raise RankLostError(f"what listens on {host}:{port} is not rank 0: it lacks the secret")
    return Channel(connection, 0)


def _admit(connection: socket.socket, secret: bytes) -> int:
    ours = secrets.token_bytes(_NONCE)
    connection.settimeout(HANDSHAKE_SECONDS)
    connection.sendall(ours)
    claim = _exactly(connection, _RANK.size, HANDSHAKE_SECONDS)
    theirs = _exactly(connection, _NONCE, HANDSHAKE_SECONDS)
    expected = _sign(secret, b"rank", ours + claim + theirs)
    proof = _exactly(connection, len(expected), HANDSHAKE_SECONDS)
    if not hmac.compare_digest(proof, expected):
        raise ValueError("it lacks the secret")
    connection.sendall(_sign(secret, b"root", theirs + ours))
    return int(_RANK.unpack(claim)[0])


def _sign(secret: bytes, role: bytes, message: bytes) -> bytes:
    return hmac.digest(secret, role + message, "sha256")


def _exactly(connection: socket.socket, count: int, seconds: float | None) -> bytes:
    deadline = None if seconds is None else time.monotonic() + seconds
    received = bytearray()
    while len(received) < count:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        else:
            connection.settimeout(None)
        part = connection.recv(min(count - len(received), 1 << 20))
        if not part:
            raise ConnectionResetError("connection closed")
        received += part
    return bytes(received)
