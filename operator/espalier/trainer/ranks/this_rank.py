"""Which rank this process is, from the environment that a launcher sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from espalier.trainer.problems import UserMistakeError

SECRET = "ESPALIER_RANK_SECRET"
REPLY_SECONDS = "ESPALIER_RANK_SECONDS"
DEFAULT_REPLY_SECONDS = 900.0


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes; ``local_rank`` is its GPU.

    ``secret`` proves to a rank that its peer belongs here; ``reply_seconds`` bounds every wait of
    one rank for another, so it must exceed the longest forward-backward of a share.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    secret: bytes = b""
    reply_seconds: float = DEFAULT_REPLY_SECONDS


def read_world(environment: Mapping[str, str]) -> World:
    """One rank unless WORLD_SIZE says otherwise; UserMistakeError names a variable that is wrong.

    Source: RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them.
    """
    size = int(_number(environment, "WORLD_SIZE", 1))
    rank = int(_number(environment, "RANK", 0))
    seconds = _number(environment, REPLY_SECONDS, DEFAULT_REPLY_SECONDS)
    if size < 1 or not 0 <= rank < size or not seconds > 0:
        raise _mistake(f"RANK is {rank}, WORLD_SIZE {size} and {REPLY_SECONDS} {seconds:g}")
    secret = environment.get(SECRET, "")
    if size > 1 and not secret:
        raise _mistake(f"{SECRET} is not set, and WORLD_SIZE is {size}")
    local_rank = int(_number(environment, "LOCAL_RANK", rank))
    return World(rank, size, local_rank, secret.encode(), seconds)


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
