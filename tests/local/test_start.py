"""What ``espalier dev`` says and leaves behind when it cannot start."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from espalier.cli.main import app
from espalier.local.layout import Layout

EXAMPLE = Path(__file__).parents[2] / "examples" / "arithmetic"


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "manifests"))


def refused(directory: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["dev", str(directory), *arguments])
    assert done.exit_code in (1, 2)
    return done.output


def test_a_port_that_is_taken_is_named_with_the_option(manifests: Path) -> None:
    with socket.socket() as program:
        program.bind(("127.0.0.1", 0))
        program.listen()
        port = str(program.getsockname()[1])
        said = refused(manifests, "--port", port)
    assert f"--port {port} cannot be served: Address already in use; give another --port" in said


def test_a_state_that_another_one_works_in_is_refused(manifests: Path, tmp_path: Path) -> None:
    with Layout(tmp_path / "state", {}).claimed():
        said = refused(manifests, "--state", str(tmp_path / "state"))
    assert "another espalier dev works in" in said
    assert "give --state" in said


def test_a_wrong_directory_is_left_as_it_is(tmp_path: Path) -> None:
    assert "is not a directory" in refused(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "declares no TrainableModel" in refused(tmp_path / "empty")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_state_that_cannot_be_made_is_not_called_a_port(manifests: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(manifests, "--state", str(tmp_path / "file" / "state"))
    assert "--port" not in said
    assert "--state" in said
