"""Rank 0's calls to the other ranks, and their answers: pickled objects over a gloo group.

Trust: whoever reaches the group can run code in a rank. All of its sockets are on the loopback
interface (``meeting``), so only processes of the same pod reach it. Rank 0 parses what clients
send; their bytes are never unpickled.

The ranks wait for calls here and not on the GPU, whose collectives have a watchdog. A process that
ends closes its connections, which gloo reports at once, but for a send that it was about to write
(``Pair::signalException`` tells no unbound buffer in ``tx_``; in 1 of 30 kills): that one ends with
the timeout, as if the rank hung. The launcher does not wait for it: it ends all ranks with one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from espalier.trainer.ranks.this_rank import REPLY_SECONDS, World

# An idle trainer calls nobody. Rank 0's end ends this wait sooner.
IDLE = timedelta(days=365)


class RankLostError(Exception):
    """A rank is gone, hangs or disagrees: only a restart of all ranks helps."""


class Control:
    """Sends and receives whole objects; every wait but that for a call ends by ``world``'s timeout.

    Rank 0 announces a call with one number, which is all that an idle rank waits for.
    """

    def __init__(self, world: World) -> None:
        self.rank, self.size = world.rank, world.size
        self._seconds = world.reply_seconds
        timeout = timedelta(seconds=world.reply_seconds)
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._probes: list[Any] = []

    def wait_for_all(self, seconds: float) -> None:
        """Returns once every rank is here; RankLostError names those that are not in time."""
        try:
            dist.monitored_barrier(
                self._group, timeout=timedelta(seconds=seconds), wait_all_ranks=True
            )
        except RuntimeError as error:
            raise RankLostError(f"not all ranks have loaded in {seconds:g} s: {error}") from error

    def call(self, message: Any, rank: int) -> None:
        """Announces a call to a rank and sends it; RankLostError if the rank does not take it."""
        try:
            dist.send(torch.zeros(1), dst=rank, group=self._group)
        except RuntimeError as error:
            raise self._lost(rank, "take a call", error) from error
        self.send(message, rank)

    def next_call(self) -> Any:
        """Waits for rank 0's next call, however long; RankLostError if rank 0 is gone."""
        try:
            work = dist.irecv(torch.zeros(1), src=0, group=self._group)
            assert work is not None
            work.wait(IDLE)
        except RuntimeError as error:
            raise RankLostError(f"rank 0 is gone: {error}") from error
        return self.receive(0)

    def send(self, message: Any, rank: int) -> None:
        """Returns once the rank takes the message; RankLostError if it does not."""
        try:
            dist.send_object_list([message], dst=rank, group=self._group)
        except RuntimeError as error:
            raise self._lost(rank, "take a message", error) from error

    def receive(self, rank: int) -> Any:
        """The rank's next message; RankLostError if there is none."""
        message: list[Any] = [None]
        try:
            dist.recv_object_list(message, src=rank, group=self._group)
        except RuntimeError as error:
            raise self._lost(rank, "answer", error) from error
        return message[0]

    def gone(self) -> list[int]:
        """The ranks that have ended, found by sending to each; the group is unusable afterwards."""
        gone = []
        for rank in range(self.size):
            if rank == self.rank:
                continue
            try:
                # Kept, because the operation may outlive this call.
                self._probes.append(dist.isend(torch.zeros(1), dst=rank, group=self._group))
            except RuntimeError:
                gone.append(rank)
        return gone

    def _lost(self, rank: int, what: str, error: RuntimeError) -> RankLostError:
        return RankLostError(
            f"rank {rank} is gone, or did not {what} within {self._seconds:g} s "
            f"({REPLY_SECONDS}): {error}"
        )
