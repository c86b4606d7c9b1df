"""Starts the trainer: ``python -m espalier.trainer [--port 8000]``."""

from __future__ import annotations

import gc
import os

# Idle OpenMP threads otherwise spin on cores that the pod shares with the sampler.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()
    # What is imported stays: looking for garbage among it takes an eighth of the start.
    gc.disable()

import argparse
import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from espalier import process
from espalier.api.exit_codes import FAULT, USER_MISTAKE
from espalier.core.volume import base_directory
from espalier.environment import SettingsError
from espalier.telemetry import spans
from espalier.trainer.compute import gpu_memory
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.http.service import SERVER, Service
from espalier.trainer.http.site import Site
from espalier.trainer.http.watchdog import Watchdog
from espalier.trainer.policy.policy import Policy, load_policy
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.ranks import meeting
from espalier.trainer.ranks.control import RankLostError
from espalier.trainer.ranks.this_rank import World, read_world
from espalier.trainer.settings import TrainerSettings, read_settings
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError, Stored
from espalier.trainer.volume.command_log import CommandLog
from espalier.trainer.volume.lock import LogBusyError
from espalier.unchanged import end_if_changed, note

logger = logging.getLogger("espalier.trainer")

SHUTDOWN_SECONDS = 20.0


@contextmanager
def base_readable() -> Iterator[None]:
    """Raises UserMistakeError where the base is damaged."""
    try:
        yield
    except DigestError as error:
        raise UserMistakeError(
            "BaseUnreadable", str(error), "delete the importer Job so that the base is copied again"
        ) from error


def make_policy(settings: TrainerSettings, base: Stored, world: World) -> Policy:
    """The base with its adapter, on this rank's device."""
    policy = load_policy(base.path, settings.adapter, settings.dtype, world.size)
    if policy.warning is not None:
        warning = policy.warning
        logger.warning("%s: %s; %s", warning.reason, warning.detail, warning.remedy)
    return policy


def make_engine(
    settings: TrainerSettings, world: World, publish: Callable[[TrainingState], None]
) -> Engine:
    """Takes the log, loads the base, meets the other ranks and restores what was acknowledged."""
    store = CheckpointStore(settings.volume, settings.model)
    log = CommandLog(store.model_directory(settings.model))
    meeting.choose_device(world)
    gpu_memory.tell()
    # Before any rank reads it, and looked at again once all have.
    noted = note(base_directory(settings.volume, settings.base))
    control = meeting.meet(world)
    try:
        with base_readable():
            # Loading reads every byte once more, so hashing costs less than it reads. Where it
            # does not pass, this rank ends all others.
            base = store.verify("base", settings.base, noted=noted)
        compute = meeting.lead(make_policy(settings, base, world), control)
    finally:
        # Also where it cannot be loaded: that may be no mistake of the user's.
        end_if_changed(noted)
    state = TrainingState(
        model=settings.model,
        base=settings.base,
        compute=compute,
        store=store,
        log=log,
        verified=base,
    )
    return Engine(state, publish)


def follow(settings: TrainerSettings, world: World) -> None:
    """A rank above 0, which ends when rank 0 does: it keeps nothing that the log lacks."""
    store = CheckpointStore(settings.volume, settings.model)
    meeting.choose_device(world)
    control = meeting.meet(world)
    assert control is not None, "a rank above 0 is not alone"
    with base_readable():
        base = store.open("base", settings.base)
    meeting.follow(make_policy(settings, base, world), control)


def record_spans(settings: TrainerSettings, world: World) -> None:
    """Of rank 0, which answers; UserMistakeError where the variables are wrong."""
    if world.rank > 0:
        return
    about = {"namespace": settings.namespace, "model": settings.model}
    try:
        spans.start(os.environ, "espalier-trainer", **about)
    except SettingsError as error:
        raise UserMistakeError("InvalidSettings", error.detail, error.remedy) from error


async def serve(settings: TrainerSettings, world: World, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT; raises what keeps the engine from starting."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # Waiting for another rank uses no CPU time, and has a limit of its own.
    patience = max(settings.stuck_seconds, world.reply_seconds if world.size > 1 else 0)
    service = Service(
        settings.public_keys, settings.audience, settings.max_body_bytes, Watchdog(patience)
    )
    runner = web.AppRunner(
        service.app(), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, **SERVER
    )
    await runner.setup()
    await Site(runner, host, port).start()
    logger.info("listening on %s, loading base %s", runner.addresses, settings.base)
    starting = asyncio.create_task(service.start(lambda told: make_engine(settings, world, told)))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        logger.info("ready")
        await stopping
    service.feed.close()
    await runner.cleanup()


def main() -> int:
    """The exit code: 0 after SIGTERM, 64 for a user's mistake, 1 for anything else."""
    parser = argparse.ArgumentParser(description="Espalier trainer")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    process.configure_logs()
    try:
        settings, world = read_settings(os.environ), read_world(os.environ)
        record_spans(settings, world)
        logger.info("rank %d of %d is process %d", world.rank, world.size, os.getpid())
        if world.rank > 0:
            follow(settings, world)
        else:
            asyncio.run(serve(settings, world, arguments.host, arguments.port))
    except (UserMistakeError, CommandError) as error:
        process.leave_problem(error.problem)
        return USER_MISTAKE
    except (LogBusyError, RankLostError) as error:
        logger.error("%s", error)
        return FAULT
    return 0


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    # A command still running is not acknowledged, so nothing is lost by not waiting for it.
    code = main()
    spans.stop()
    process.end(code)
