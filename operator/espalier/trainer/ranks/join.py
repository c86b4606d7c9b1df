"""How ranks find each other: torch's rendezvous, then the control channel beside it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from espalier.trainer.compute.compute import Compute, LocalCompute
from espalier.trainer.policy.policy import Policy
from espalier.trainer.ranks.channel import RankLostError, accept, connect, listen
from espalier.trainer.ranks.other_rank import Worker
from espalier.trainer.ranks.rank0 import ReplicatedCompute, end_process
from espalier.trainer.ranks.sharded import ShardedCompute
from espalier.trainer.ranks.this_rank import World

# Ranks load the same base from the same volume, so none is much later than another.
START_SECONDS = 900.0
_PORT_KEY = "espalier/control-port"


def choose_device(world: World) -> None:
    """Makes this rank's GPU the current one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)


def meet(world: World) -> Store | None:
    """Waits for all ranks, before any loads its part of the weights; None for one rank alone."""
    return _meet(world) if world.size > 1 else None


def lead(
    policy: Policy,
    world: World,
    store: Store | None,
    host: str,
    lost: Callable[[RankLostError], NoReturn] = end_process,
) -> Compute:
    """Rank 0's compute, once every rank has loaded; ``host`` is where the others reach it.

    ``lost`` is called when a rank is gone, hangs or disagrees.
    """
    if store is None:
        return LocalCompute(policy)
    with listen(host) as listener:
        store.set(_PORT_KEY, str(listener.getsockname()[1]))
        channels = accept(listener, world.size, world.secret, START_SECONDS)
    kind = ShardedCompute if policy.sharding.size > 1 else ReplicatedCompute
    return kind(policy, channels, reply_seconds=world.reply_seconds, lost=lost)


def follow(policy: Policy, world: World, store: Store, host: str) -> None:
    """A rank above 0: returns never, raises RankLostError when rank 0 is gone."""
    port = int(store.get(_PORT_KEY))
    channel = connect(host, port, world.rank, world.secret)
    Worker(LocalCompute(policy), channel, world.reply_seconds).run()


def _meet(world: World) -> Store:
    try:
        timeout = timedelta(seconds=START_SECONDS)
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=world.reply_seconds),
        )
    except (RuntimeError, ValueError) as error:
        raise RankLostError(f"the ranks do not find each other: {error}") from error
    return PrefixStore("espalier", store)
