"""``kubectl krew install`` of the plugin, from the archive that ``make krew`` builds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(os.environ.get("ESPALIER_CACHE") or Path.home() / ".cache/espalier") / "bin"
URL = "https://downloads.example.com/espalier"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the manifest and the archive for this machine, of this Python alone."""
    out = tmp_path_factory.mktemp("krew")
    subprocess.run([ROOT / "dev/tools.sh", "krew"], check=True, timeout=600)
    environment = {**os.environ, "PYTHONS": PYTHON, "OUT": str(out)}
    subprocess.run([ROOT / "dev/krew.sh", URL], check=True, env=environment, timeout=600)
    return out


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where krew has installed it."""
    home = tmp_path_factory.mktemp("home")
    path = f"{home}/bin:{BIN}:{os.environ['PATH']}"
    found = {"KREW_ROOT": str(home), "HOME": str(home), "PATH": path}
    found["ESPALIER_PYTHON"] = sys.executable
    (archive,) = built.glob("*.tar.gz")
    manifest = built / "espalier.yaml"
    done = run(found, "krew", "install", f"--manifest={manifest}", f"--archive={archive}")
    assert done.returncode == 0, done.stderr
    return found


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "kubectl", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.timeout(1500)
def test_the_installed_plugin_has_the_verbs(environment: dict[str, str]) -> None:
    shown = run(environment, "espalier", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Usage: kubectl espalier" in shown.stdout
    for verb in ("models", "run", "checkpoint", "rollouts", "tree"):
        assert verb in shown.stdout


def test_a_python_without_any_packages_is_enough(environment: dict[str, str]) -> None:
    bare = Path(environment["HOME"]) / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys._base_executable} -S "$@"\n')  # type: ignore[attr-defined]
    bare.chmod(0o755)
    failed = run({**environment, "ESPALIER_PYTHON": str(bare)}, "espalier", "models", "list")
    assert failed.returncode == 1
    # There is no cluster, which kubectl says and the plugin passes on.
    assert "connection to the server localhost:8080 was refused" in failed.stderr


def test_a_python_that_the_archive_has_no_packages_for_is_named(
    environment: dict[str, str],
) -> None:
    failed = run({**environment, "ESPALIER_PYTHON": "/bin/false"}, "espalier", "--help")
    assert failed.returncode == 1
    assert f"needs a Python of cp{PYTHON.replace('.', '')}" in failed.stderr


def test_the_manifest_names_each_archive_by_its_sum(built: Path) -> None:
    manifest = yaml.safe_load((built / "espalier.yaml").read_text())
    assert manifest["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    (platform,) = manifest["spec"]["platforms"]
    archive = built / Path(platform["uri"]).name
    counted = subprocess.run(["sha256sum", archive], capture_output=True, text=True, check=True)
    assert platform["sha256"] == counted.stdout.split()[0]
    assert platform["uri"] == f"{URL}/{manifest['spec']['version']}/{archive.name}"
