"""trackio, the real one, without a network: what its files say of a run that is resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tracking.trackio_process import SECRET, UID


def process(files: Path, *arguments: str) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")},
        # As the pod has it, and as a script's user sets it.
        "ESPALIER_TRACKIO" if arguments[0] == "declared" else "TRACKIO_DIR": str(files),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(files.parent / "home"),
        "SOME_API_KEY": SECRET,
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.tracking.trackio_process", *arguments]
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("told", ["script", "declared"])
def test_trackio_shows_one_run_over_two_starts_and_the_steps_of_a_rollback(
    told: str, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    # The output of a runner is its journal, and trackio prints.
    assert process(files, told, "1", "2") == ""
    assert process(files, told, "3", "2") == ""
    (run,) = json.loads(process(files, "read"))
    assert run["name"] == UID
    assert run["config"]["_Group"] == "third try"
    assert run["config"]["spec"]["learningRate"] == "1e-3"
    assert run["rows"] == [[1, 0.1], [2, 0.2], [3, 0.3], [2, 0.2]]
    for file in files.rglob("*.db*"):
        assert SECRET.encode() not in file.read_bytes()
