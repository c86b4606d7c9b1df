"""``python -m espalier.runner``: drives the run that the environment names."""

from __future__ import annotations

import os
import sys

from espalier.termination import end_on_sigterm

HASH_SEED = "PYTHONHASHSEED"

if __name__ == "__main__":
    end_on_sigterm()
    if os.environ.get(HASH_SEED) != "0":
        # Some tasks follow the order of sets; the seed is read when Python starts.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "espalier.runner"],
            {**os.environ, HASH_SEED: "0"},
        )

import asyncio
import logging
import signal

from prometheus_client import start_http_server

from espalier.api.exit_codes import TERMINATED, TRY_AGAIN, USER_MISTAKE
from espalier.api.wire.problem import Problem
from espalier.client import GatewayClient, GatewayError, Patience
from espalier.environment import SettingsError
from espalier.process import configure_logs, leave_problem
from espalier.runner.custom_loss.declared_loss import open_loss
from espalier.runner.journal import Journal
from espalier.runner.loop import Loop
from espalier.runner.open_rewards import (
    Surroundings,
    open_rewards,
    services_of,
)
from espalier.runner.open_taskset import open_taskset
from espalier.runner.run_end import UserError, WaitError
from espalier.runner.settings import RunnerSettings, read_settings
from espalier.runner.user_modules import mounted_modules
from espalier.runner.waiting import Waiting
from espalier.telemetry import spans


def surroundings(settings: RunnerSettings) -> Surroundings:
    """What rewards reach from the runner's pod."""

    def judge(name: str, patience: Patience) -> GatewayClient:
        slug = f"{settings.namespace}/{name}"
        return GatewayClient(settings.gateway_url, slug, settings.token_file, patience=patience)

    return Surroundings(
        mounted_modules(settings.modules_directory), services_of(settings.namespace), judge
    )


async def drive(settings: RunnerSettings, journal: Journal) -> None:
    """Runs the loop to its end."""
    slug = f"{settings.namespace}/{settings.model}"
    async with GatewayClient(settings.gateway_url, slug, settings.token_file) as client:
        run, around = (settings.namespace, settings.run), surroundings(settings)
        loop = Loop(
            client,
            run,
            open_tasks=open_taskset,
            open_rewards=lambda spec, tasks: open_rewards(spec, tasks, around),
            open_loss=lambda ref: open_loss(ref, around.module),
            journal=journal,
            waiting=Waiting(journal),
            mounted=settings.mounted,
            modules=settings.modules,
        )
        await loop.drive()


async def _until_terminated(settings: RunnerSettings, journal: Journal) -> None:
    task = asyncio.ensure_future(drive(settings, journal))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def _serve_metrics(port: int) -> None:
    """On a thread of its own. A run goes on without: a user's image beside it may have the port."""
    try:
        start_http_server(port)
    except OSError as error:
        logging.getLogger(__name__).warning("metrics are not served at port %d: %s", port, error)


def record_spans(settings: RunnerSettings) -> None:
    """UserError where the variables are wrong."""
    about = {"namespace": settings.namespace, "model": settings.model, "run": settings.run}
    try:
        spans.start(os.environ, "espalier-runner", **about)
    except SettingsError as error:
        raise UserError("InvalidSettings", error.detail, error.remedy) from error


def main() -> int:
    """The exit code: 0 done, 64 the user's mistake, 75 to be started again."""
    configure_logs()
    journal = Journal(os.environ.get("ESPALIER_RUN", ""))
    try:
        settings = read_settings(os.environ)
        record_spans(settings)
        if settings.metrics_port is not None:
            _serve_metrics(settings.metrics_port)
        asyncio.run(_until_terminated(settings, journal))
    except UserError as error:
        return _end(journal, error.problem, USER_MISTAKE)
    except WaitError as error:
        return _end(journal, error.problem, TRY_AGAIN)
    except GatewayError as error:
        problem = Problem(detail=str(error), reason=type(error).__name__.removesuffix("Error"))
        return _end(journal, problem, TRY_AGAIN)
    except asyncio.CancelledError:
        journal.event("terminated")
        return TERMINATED
    return 0


def _end(journal: Journal, problem: Problem, code: int) -> int:
    journal.event("failed", code=code, **problem.model_dump())
    leave_problem(problem)
    return code


if __name__ == "__main__":
    code = main()
    spans.stop()
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: a tracker's library may wait at the end of Python for a service that hangs, and
    # what the run needs is done.
    os._exit(code)
