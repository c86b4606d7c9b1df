"""What the command line imports before it knows which command it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("torch", "transformers", "aiohttp", "kubernetes")


@pytest.mark.parametrize("module", SLOW)
def test_help_imports_no_slow_library(module: str) -> None:
    # An import of a module that is None in sys.modules fails, and names it.
    script = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv[1:] = ['--help']; "
        "from espalier.cli.main import app; app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
