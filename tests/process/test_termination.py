"""What a process leaves for the operator when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.api.wire.problem import Problem
from espalier.process import leave_problem


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
