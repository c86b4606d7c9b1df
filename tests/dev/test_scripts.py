"""What the scripts in dev/ tell a person: that they live, why they failed, what a machine lacks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMMON = f". {ROOT}/dev/common.sh"


def bash(script: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A strict bash script with an empty cache."""
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        env={**os.environ, "ESPALIER_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestStep:
    def test_says_what_it_does_and_how_long_it_took_last_time(self, tmp_path: Path) -> None:
        steps = 'step nap "taking a nap" sleep 1\nstep nap "taking a nap" true'
        done = bash(f"{COMMON}\n{steps}", tmp_path)
        first, second = done.stderr.splitlines()
        assert first.endswith("taking a nap")
        assert second.endswith(("taking a nap (last time 1 s)", "taking a nap (last time 2 s)"))

    def test_that_fails_prints_the_end_of_its_log_and_ends_the_script(self, tmp_path: Path) -> None:
        script = (
            'work() { seq 100; echo "no space left"; false; seq 200 300; }\n'
            'step work "working" work\necho "went on"'
        )
        done = bash(f"{COMMON}\n{script}", tmp_path)
        assert done.returncode == 1
        assert "went on" not in done.stdout
        lines = done.stderr.splitlines()
        assert lines[-2:] == [
            "  | no space left",
            f"error: this failed: working. Its whole log is in {tmp_path}/logs/work.log.",
        ]
        assert "  | 100" in lines
        assert "  | 2" not in lines

    def test_that_takes_long_shows_that_it_lives(self, tmp_path: Path) -> None:
        script = 'work() { echo "compiling x"; sleep 12; }\nstep work "working" work'
        done = bash(f"{COMMON}\n{script}", tmp_path)
        assert any("s: compiling x" in line for line in done.stderr.splitlines())

    def test_that_is_interrupted_ends_all_that_it_started(self, tmp_path: Path) -> None:
        mark = f"sleep 3{os.getpid()}"
        script = f'{COMMON}\nwork() {{ {mark}; }}\nstep work "working" work'
        process = begun(script, tmp_path)
        assert within(30, lambda: running(mark)), "the command never started"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
        assert within(30, lambda: not running(mark)), "its command goes on"


BUILDAH = shutil.which("buildah") is not None and os.geteuid() == 0


@pytest.mark.skipif(not BUILDAH, reason="buildah and root are wanted, as for building images")
class TestBuildsImages:
    """A store of its own, in plain directories: nothing of it stays mounted."""

    STORE = f"{COMMON}\nexport STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot"

    @pytest.fixture(autouse=True)
    def _without_its_runtime_directory(self, tmp_path: Path) -> Iterator[None]:
        yield
        (line,) = re.findall('runroot = "(.*)"', (tmp_path / "storage.conf").read_text())
        shutil.rmtree(line, ignore_errors=True)

    def ids(self, cache: Path) -> list[str]:
        return bash(f"{self.STORE}\nbuildah containers -q", cache).stdout.split()

    def test_a_build_that_fails_leaves_no_container_and_takes_no_other(
        self, tmp_path: Path
    ) -> None:
        mine = bash(f"{self.STORE}\nbuildah from scratch >&2", tmp_path)
        assert mine.returncode == 0, mine.stderr
        before = self.ids(tmp_path)
        (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\nRUN /none\n")
        build = f"buildah bud -q --layers -t localhost/x {tmp_path}"
        assert bash(f"{self.STORE}\n{build}", tmp_path).returncode != 0
        assert len(self.ids(tmp_path)) == 2, "buildah itself cleans up: this test shows nothing"
        script = f'{self.STORE}\nbuilds_images\nstep x "building" {build}'
        failed = bash(script, tmp_path)
        assert failed.returncode == 1
        assert "this failed: building" in failed.stderr
        assert len(self.ids(tmp_path)) == 2
        assert set(before) < set(self.ids(tmp_path))

    def test_neither_does_one_that_is_ended(self, tmp_path: Path) -> None:
        mark = f"sleep 4{os.getpid()}"
        work = f"work() {{ buildah from scratch; {mark}; }}"
        script = f'set -euo pipefail\n{self.STORE}\n{work}\nbuilds_images\nstep x "building" work'
        process = begun(script, tmp_path)
        assert within(30, lambda: running(mark)), "the build never started"
        assert len(self.ids(tmp_path)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
        assert self.ids(tmp_path) == []

    def test_a_node_is_built_beside_them_and_neither_takes_the_others_container(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
        base = "localhost/espalier-node-base:1"
        node = f"{self.STORE}\nbuilds_images node-image\nbuildah from {base} >&2\nexit 3"
        script = (
            f"{self.STORE}\nbuildah bud -q -t {base} {tmp_path} >&2\n"
            "builds_images\nbuildah from scratch >&2\n"
            f"code=0; bash -c '{node}' || code=$?\n"
            "echo $code $(buildah containers -q | wc -l)\n"
            f"buildah from {base} >&2"
        )
        done = bash(script, tmp_path)
        assert (done.returncode, done.stdout) == (0, "3 1\n"), done.stderr
        names = f"{self.STORE}\nbuildah containers -n --format '{{{{.ImageName}}}}'"
        assert bash(names, tmp_path).stdout.strip() == base


class TestPreflight:
    def test_names_all_that_is_missing_at_once(self, tmp_path: Path) -> None:
        here = tmp_path / "bin"
        here.mkdir()
        # A full disk and an old Python, as the programs that are asked would show them.
        (here / "df").write_text(
            "#!/bin/sh\necho header\necho /dev/x 9 9 1048576 9% /\n", encoding="utf-8"
        )
        (here / "df").chmod(0o755)
        (here / "python3").write_text(
            "#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.1\n", encoding="utf-8"
        )
        (here / "python3").chmod(0o755)
        path = f"{here}:{os.environ['PATH']}"
        done = bash(f"{ROOT}/dev/preflight.sh try", tmp_path, PATH=path)
        assert done.returncode == 1
        assert "disk: 1 GiB are free" in done.stderr
        assert "python: Python 3.9.1; 3.11 or newer is needed" in done.stderr

    def test_refuses_a_port_that_somebody_else_holds(self, tmp_path: Path) -> None:
        if taken := registry_port():
            with taken:
                done = bash(f"{ROOT}/dev/preflight.sh demo", tmp_path)
        else:  # Our own registry runs: to an empty cache it is a stranger's.
            done = bash(f"{ROOT}/dev/preflight.sh demo", tmp_path)
        assert "ports: something else listens on 127.0.0.1:5000" in done.stderr

    def test_can_be_left_out(self, tmp_path: Path) -> None:
        done = bash(f"{ROOT}/dev/preflight.sh demo", tmp_path, PREFLIGHT="skip")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", sorted((ROOT / "dev").rglob("*.sh")), ids=lambda path: path.name)
def test_every_script_can_be_parsed(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_an_unknown_tool_is_refused_with_the_list(tmp_path: Path) -> None:
    done = bash(f"{ROOT}/dev/tools.sh kubctl", tmp_path)
    assert done.returncode == 1
    assert "there is no tool kubctl; tools:" in done.stderr
    assert "kubectl" in done.stderr


def registry_port() -> socket.socket | None:
    """A listener on the local registry's port, unless something listens there already."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", 5000))
    except OSError:
        listener.close()
        return None
    listener.listen()
    return listener


def begun(script: str, cache: Path) -> subprocess.Popen[bytes]:
    """A bash script that goes on meanwhile."""
    return subprocess.Popen(
        ["bash", "-c", script],
        env={**os.environ, "ESPALIER_CACHE": str(cache)},
        stderr=subprocess.DEVNULL,
    )


def running(command: str) -> bool:
    return subprocess.run(["pgrep", "-fx", command], capture_output=True, check=False).stdout != b""


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would run")
def test_make_gpu_says_when_there_is_no_gpu_and_runs_nothing(tmp_path: Path) -> None:
    done = bash(f"PYTHON={sys.executable} {ROOT}/dev/gpu.sh", tmp_path)
    assert done.returncode == 1
    assert "no GPU could be had" in done.stderr
    assert not done.stdout


def test_make_gpu_names_what_its_python_lacks(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    done = bash(f"PYTHON={bare}/bin/python {ROOT}/dev/gpu.sh", tmp_path)
    assert done.returncode == 1
    assert "lacks torch, transformers, peft" in done.stderr


def test_what_fails_in_a_substitution_ends_the_script(tmp_path: Path) -> None:
    """An image was built from the empty list of a resolution that had failed."""
    script = 'list() { false; echo empty; }\nouter() { inner=$(list | cat); echo "$inner"; }'
    done = bash(f'{COMMON}\n{script}\nbuilt=$(outer); echo "built $built"', tmp_path)
    assert done.returncode != 0
    assert "built" not in done.stdout


def test_the_node_image_is_made_anew_for_what_a_node_contains_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dev", tmp_path / "dev")

    def name() -> str:
        done = bash(f"{tmp_path}/dev/node-image.sh name", tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "cache").mkdir()
    before = name()
    for file in ("flux/go.sum", "kueue/go.mod"):
        (tmp_path / "dev/go" / file).write_text("newer")
    (tmp_path / "dev/go/another").mkdir()
    (tmp_path / "dev/go/another/go.mod").write_text("module another")
    assert name() == before
    for file in ("go/cluster/go.sum", "go/policies/go.sum", "node/policies.yaml"):
        (tmp_path / "dev" / file).write_text("newer")
        assert name() != before
        before = name()
