"""This process's rank, from the environment that a launcher sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from espalier.trainer.problems import UserMistakeError

SECRET = "ESPALIER_RANK_SECRET"
LISTENER = "ESPALIER_RANK_LISTENER"
REPLY_SECONDS = "ESPALIER_RANK_SECONDS"
DEFAULT_REPLY_SECONDS = 900.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes; ``local_rank`` is its GPU.

    Ranks meet at ``port`` of the loopback interface, under a ``secret`` of their launcher.
    ``reply_seconds`` bounds every wait of one rank for another, so it must exceed the longest
    forward-backward of a share. ``listener`` is the descriptor of a socket that listens
    there, which rank 0 is given by its launcher; without one it opens the port itself.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    port: int = 0
    secret: str = ""
    reply_seconds: float = DEFAULT_REPLY_SECONDS
    listener: int | None = None


def read_world(environment: Mapping[str, str]) -> World:
    """One rank unless WORLD_SIZE says otherwise; UserMistakeError names a variable that is wrong.

    Source: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as torchrun sets them.
    """
    size = int(_number(environment, "WORLD_SIZE", 1))
    rank = int(_number(environment, "RANK", 0))
    seconds = _number(environment, REPLY_SECONDS, DEFAULT_REPLY_SECONDS)
    if size < 1 or not 0 <= rank < size or not seconds > 0:
        raise _mistake(f"RANK is {rank}, WORLD_SIZE {size} and {REPLY_SECONDS} {seconds:g}")
    local_rank = int(_number(environment, "LOCAL_RANK", rank))
    if size == 1:
        return World(local_rank=local_rank, reply_seconds=seconds)
    host = environment.get("MASTER_ADDR", LOOPBACK)
    if host != LOOPBACK:
        raise _mistake(f"MASTER_ADDR is {host}, and the ranks of a trainer share one node")
    secret = environment.get(SECRET, "")
    if not secret:
        raise _mistake(f"{SECRET} is not set, and WORLD_SIZE is {size}")
    port = int(_number(environment, "MASTER_PORT", 0))
    if not 0 < port < 1 << 16:
        raise _mistake(f"MASTER_PORT is {port}, and WORLD_SIZE is {size}")
    listener = int(_number(environment, LISTENER, 0)) or None
    return World(rank, size, local_rank, port, secret, seconds, listener)


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if text is None:
        return default
    try:
        return float(text)
    except ValueError as error:
        raise _mistake(f"{name} is {text!r}, not a number") from error


def _mistake(detail: str) -> UserMistakeError:
    return UserMistakeError(
        "InvalidSettings", detail, "start the ranks with python -m espalier.trainer.ranks"
    )
