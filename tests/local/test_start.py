"""What ``espalier dev`` says and leaves behind when it cannot start."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import aiohttp
import pytest
from dev.ports import free_port
from tests.local.test_dev import dev
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


async def test_an_api_key_of_one_machine_opens_its_gateway_until_it_is_revoked(
    manifests: Path, tmp_path: Path
) -> None:
    port = free_port()
    # No pod of it starts without the image: the gateway alone is asked.
    async with dev(manifests, tmp_path, port, image="other") as running:
        state = await running.says(r"ESPALIER_LOCAL=(\S+)")

        def keys(*arguments: str) -> str:
            done = CliRunner().invoke(app, ["--local", state[1], "keys", *arguments])
            assert done.exit_code == 0, done.output
            return done.stdout.strip()

        key = keys("create", "me", "--service-account", "me", "--scope", "read")
        url = f"http://127.0.0.1:{port}/v1/models"
        async with aiohttp.ClientSession(headers={"X-API-Key": key}) as session:
            listed = await (await session.get(url)).json()
            assert [model["id"] for model in listed["data"]] == ["arith"]
            limited = await session.post(f"http://127.0.0.1:{port}/v1/completions", json={})
            assert limited.status == 403
            assert "me" in keys("list")
            keys("revoke", "me")
            refused = await session.get(url)
            assert refused.status == 401
            assert "ApiKeyUnknown" in await refused.text()
        assert Layout(Path(state[1]), {}).api_keys.stat().st_mode & 0o077 == 0
