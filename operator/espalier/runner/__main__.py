"""``python -m espalier.runner``: drives the run that the environment names."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from espalier.api.exit_codes import TRY_AGAIN, USER_MISTAKE
from espalier.api.wire import Problem
from espalier.client import GatewayClient, GatewayError
from espalier.process import configure_logs, leave_problem
from espalier.runner.journal import Journal
from espalier.runner.loop import Loop
from espalier.runner.open_taskset import open_taskset
from espalier.runner.run_end import UserError, WaitError
from espalier.runner.waiting import Waiting

HASH_SEED = "PYTHONHASHSEED"


@dataclass(frozen=True)
class Settings:
    """What the operator tells the runner through its environment."""

    namespace: str
    run: str
    model: str
    gateway_url: str
    token_file: Path
    mounted: str | None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """From the environment; UserError names a variable that is missing or wrong."""
        names = ("ESPALIER_RUN", "ESPALIER_MODEL", "ESPALIER_GATEWAY_URL", "ESPALIER_TOKEN_FILE")
        missing = [name for name in names if not environment.get(name)]
        if missing:
            raise UserError(
                "InvalidSettings",
                f"{', '.join(missing)} are not set",
                "Set them as the operator does in the runner's Job",
            )
        namespace, separator, run = environment["ESPALIER_RUN"].partition("/")
        if not (namespace and separator and run):
            raise UserError(
                "InvalidSettings",
                f"ESPALIER_RUN is {environment['ESPALIER_RUN']!r}",
                "Set it to <namespace>/<name of a TrainingRun>",
            )
        return cls(
            namespace,
            run,
            environment["ESPALIER_MODEL"],
            environment["ESPALIER_GATEWAY_URL"],
            Path(environment["ESPALIER_TOKEN_FILE"]),
            environment.get("ESPALIER_TASKS_MOUNTED"),
        )


async def drive(settings: Settings, journal: Journal) -> None:
    """Runs the loop to its end."""
    slug = f"{settings.namespace}/{settings.model}"
    async with GatewayClient(settings.gateway_url, slug, settings.token_file) as client:
        run = (settings.namespace, settings.run)
        loop = Loop(
            client,
            run,
            open_tasks=open_taskset,
            journal=journal,
            waiting=Waiting(journal),
            mounted=settings.mounted,
        )
        await loop.drive()


async def _until_terminated(settings: Settings, journal: Journal) -> None:
    # As process 1 of a container, Python would ignore SIGTERM without a handler.
    task = asyncio.ensure_future(drive(settings, journal))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def main() -> int:
    """The exit code: 0 done, 64 the user's mistake, 75 to be started again."""
    configure_logs()
    journal = Journal(os.environ.get("ESPALIER_RUN", ""))
    try:
        settings = Settings.read(os.environ)
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
        return 128 + signal.SIGTERM
    return 0


def _end(journal: Journal, problem: Problem, code: int) -> int:
    journal.event("failed", code=code, **problem.model_dump())
    leave_problem(problem)
    return code


if __name__ == "__main__":
    if os.environ.get(HASH_SEED) != "0":
        # Some tasks follow the order of sets; the seed is read when Python starts.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "espalier.runner"],
            {**os.environ, HASH_SEED: "0"},
        )
    sys.exit(main())
