"""Runs all ranks of a trainer on one node: ``python -m espalier.trainer.ranks --ranks 8``.

It is not torchrun, which replaces a rank's exit code by 1: 64 (a user's mistake, do not restart)
must reach the kubelet. It restarts nothing; the kubelet restarts the pod.
"""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping

from espalier.api.exit_codes import FAULT, USER_MISTAKE
from espalier.process import configure_logs
from espalier.trainer.ranks.this_rank import LISTENER, LOOPBACK, SECRET

logger = logging.getLogger("espalier.trainer.ranks")

# Rank 0 answers waiting polls before it ends; the others have nothing to finish.
GRACE_SECONDS = 30.0


async def launch(ranks: int, arguments: list[str]) -> int:
    """Starts the ranks, ends them all when the first ends, and returns the exit code."""
    processes: list[Process] = []
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        # Rank 0 ends in order, and the others follow it.
        if processes:
            _terminate(processes[0])

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        shared = {
            "WORLD_SIZE": str(ranks),
            "MASTER_PORT": str(port),
            SECRET: secrets.token_hex(32),
        }
        for rank in range(ranks):
            processes.append(await _start(rank, arguments, shared, listener))
    if stopping.is_set():
        stop()
    waits = [asyncio.create_task(process.wait()) for process in processes]
    done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    first = [waits.index(wait) for wait in done]
    for process in processes:
        _terminate(process)
    _, late = await asyncio.wait(waits, timeout=GRACE_SECONDS)
    for wait in late:
        processes[waits.index(wait)].kill()
    codes = await asyncio.gather(*waits)
    return _outcome(codes, first, stopped=stopping.is_set())


async def _start(
    rank: int, arguments: list[str], shared: Mapping[str, str], listener: socket.socket
) -> Process:
    """Rank 0 takes the listener over: a port left free might be somebody's before it is ready."""
    own, passed = {"RANK": str(rank), "LOCAL_RANK": str(rank)}, list[int]()
    if rank == 0:
        passed = [listener.fileno()]
        own[LISTENER] = str(listener.fileno())
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "espalier.trainer", *arguments),
        env={**os.environ, **shared, **own},
        pass_fds=passed,
    )


def _outcome(codes: list[int], first: list[int], *, stopped: bool) -> int:
    """The exit code; ``first`` are the ranks that ended by themselves, which is a fault."""
    if USER_MISTAKE in codes:
        return USER_MISTAKE
    if stopped:
        return _status(codes[0])
    rank = next((rank for rank in first if codes[rank]), first[0])
    logger.error("rank %d ended with %d, so all ranks were ended", rank, codes[rank])
    return _status(codes[rank]) or FAULT


def _status(code: int) -> int:
    """An exit code as a shell reports it: 128 plus the signal."""
    return code if code >= 0 else 128 - code


def _terminate(process: Process) -> None:
    if process.returncode is None:
        process.terminate()


def main() -> int:
    """Options that are not named here go to every rank."""
    parser = argparse.ArgumentParser(description="Espalier trainer on several ranks of one node")
    parser.add_argument("--ranks", type=int, required=True)
    options, arguments = parser.parse_known_args()
    configure_logs()
    return asyncio.run(launch(options.ranks, arguments))


if __name__ == "__main__":
    sys.exit(main())
