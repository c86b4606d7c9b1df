"""Others' unmodified clients: each version in an environment of its own, as a user has it."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTALL_SECONDS = 900
# A client imports for seconds, and this machine may be busy.
PATIENCE_SECONDS = 500


def each_version(versions: Sequence[str]) -> list[Any]:
    """The versions as parameters, newest first; the others are exhaustive."""
    newest, *older = versions
    return [newest, *(pytest.param(version, marks=pytest.mark.exhaustive) for version in older)]


@functools.cache
def python(script: str, version: str) -> Path:
    """The interpreter of a version's environment, which the script in dev/ makes if need be."""
    done = subprocess.run(
        [str(ROOT / "dev" / script), version],
        stdout=subprocess.PIPE,
        text=True,
        timeout=INSTALL_SECONDS,
        check=True,
    )
    return Path(done.stdout.strip())


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    code: int
    output: str
    errors: str
