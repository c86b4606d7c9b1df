"""What a process leaves for the operator when it ends, and that it ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from espalier.api.exit_codes import TERMINATED
from espalier.api.wire.problem import Problem
from espalier.process import leave_problem

# The first process of its own namespace, as that of a container is.
FIRST = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
MAY_UNSHARE = subprocess.run([*FIRST, "true"], check=False, capture_output=True).returncode == 0


def test_the_message_is_printed_and_left_where_a_pod_has_a_file_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(detail="d", reason="R", remedy="r")
    absent, present = tmp_path / "absent", tmp_path / "present"
    present.touch()
    for path in (absent, present):
        monkeypatch.setenv("ESPALIER_TERMINATION_LOG", str(path))
        leave_problem(problem)
        assert Problem.model_validate_json(capsys.readouterr().out) == problem
    assert not absent.exists()
    assert Problem.model_validate_json(present.read_text()) == problem


@pytest.mark.skipif(not MAY_UNSHARE, reason="no namespace of processes may be made here")
@pytest.mark.parametrize(
    "program",
    [
        *("controllers", "gateway", "runner", "sampler", "trainer", "trainer.ranks"),
        *(f"trainer.jobs.{job}" for job in ("collector", "importer", "folders", "scrubber")),
    ],
)
def test_the_first_process_of_a_container_ends_at_once_while_it_still_imports(program: str) -> None:
    command = [*FIRST, sys.executable, "-m", f"espalier.{program}"]
    tells = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    with subprocess.Popen(command, env=tells, stderr=subprocess.PIPE, text=True) as outer:
        assert outer.stderr is not None
        # The first of the many modules that come after.
        while "pydantic" not in outer.stderr.readline():
            assert outer.poll() is None
        (inner,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        os.kill(int(inner), signal.SIGTERM)
        outer.stderr.read()
    assert outer.returncode == TERMINATED
