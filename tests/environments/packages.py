"""Interpreters with packages that live in a user's image or server, and never in ours."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "dev" / "packages.sh"
# Verifiers and what it needs are half a gigabyte.
INSTALL_SECONDS = 900
OPENENV, VERIFIERS = "openenv==0.10.0", "verifiers==0.4.0"


@functools.cache
def interpreter(requirement: str) -> str:
    """The Python of an environment with the package, made if it is not there."""
    done = subprocess.run(
        [str(SCRIPT), requirement],
        stdout=subprocess.PIPE,
        text=True,
        timeout=INSTALL_SECONDS,
        check=True,
    )
    return done.stdout.strip()
