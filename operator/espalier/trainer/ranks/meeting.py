"""How the ranks of one node meet: torch's store, then its process groups.

Store and gloo listen on the loopback interface. The ranks of a trainer are processes of one pod, so
no other pod reaches these ports. (NCCL chooses its own interface, and carries tensors only.) Keys
of the store are below the launcher's secret, so a process of another launch, which may be given the
same port, is never taken for a rank of this one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.compute.interface import Compute
from espalier.trainer.policy.policy import Policy
from espalier.trainer.ranks.control import Control, RankLostError
from espalier.trainer.ranks.parts import ReplicatedPart, ShardedPart, serve
from espalier.trainer.ranks.rank0 import ReplicatedCompute, ShardedCompute, end_process
from espalier.trainer.ranks.this_rank import LOOPBACK, World

# Ranks load the same base from the same volume, so none is much later than another.
START_SECONDS = 900.0


def choose_device(world: World) -> None:
    """Makes this rank's GPU the current one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)


def meet(world: World, seconds: float = START_SECONDS) -> Control | None:
    """Waits for all ranks, before any loads its part of the weights; None for one rank alone."""
    if world.size == 1:
        return None
    # gloo would listen on the pod's address.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        store = _store(world, timedelta(seconds=seconds))
        _wait_for_all(store, world, seconds)
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("group", store),
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=world.reply_seconds),
        )
        return Control(world)
    except (RuntimeError, ValueError, OSError) as error:
        raise RankLostError(f"the ranks do not find each other: {error}") from error


def lead(
    policy: Policy,
    control: Control | None,
    lost: Callable[[RankLostError], NoReturn] = end_process,
) -> Compute:
    """Rank 0's compute, once every rank has loaded.

    ``lost`` is called when a rank is gone, hangs or disagrees.
    """
    if control is None:
        return LocalCompute(policy)
    part = _part(policy)
    control.wait_for_all(START_SECONDS)
    if isinstance(part, ShardedPart):
        return ShardedCompute(part, control, lost)
    return ReplicatedCompute(part, control, lost)


def follow(policy: Policy, control: Control) -> NoReturn:
    """A rank above 0: never returns, raises RankLostError when rank 0 is gone."""
    part = _part(policy)
    control.wait_for_all(START_SECONDS)
    serve(part, control)


def _part(policy: Policy) -> ShardedPart | ReplicatedPart:
    """This rank's part. Sharded ranks measure the policy together, so all of them are in here."""
    return ShardedPart(policy) if policy.sharding.size > 1 else ReplicatedPart(policy)


def _store(world: World, timeout: timedelta) -> Store:
    """The store, which rank 0 serves."""
    listener = world.listener
    if world.rank == 0 and listener is None:
        listener = socket.create_server((LOOPBACK, world.port)).detach()
    store = TCPStore(
        LOOPBACK,
        world.port,
        is_master=world.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener,
    )
    return PrefixStore(world.secret, store)


def _wait_for_all(store: Store, world: World, seconds: float) -> None:
    """Returns once every rank has named itself; RankLostError names those that have not."""
    names = {rank: f"rank-{rank}" for rank in range(world.size)}
    if store.add(names[world.rank], 1) > 1:
        raise RankLostError(f"two processes say that they are rank {world.rank} of {world.size}")
    try:
        store.wait(list(names.values()), timedelta(seconds=seconds))
    except RuntimeError as error:
        missing = [rank for rank, name in names.items() if not store.check([name])]
        raise RankLostError(f"ranks {missing} did not connect in {seconds:g} s") from error
