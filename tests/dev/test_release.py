"""A release: what it refuses, what its chart runs, and what may happen in its workflow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.apiserver import binary

ROOT = Path(__file__).resolve().parents[2]
CHART = Path("charts/espalier/Chart.yaml")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PARTS = ("operator", "trainer", "rollout", "runner")
DIGESTS = {name: f"sha256:{index:064x}" for index, name in enumerate(PARTS)}
URL = "https://downloads.example.com/espalier"
NEEDED = {
    "contents": "write",
    "packages": "write",
    "id-token": "write",
    "attestations": "write",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit of what a release is checked against."""
    there = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "dev", there / "dev", ignore=shutil.ignore_patterns("__pycache__"))
    (there / CHART.parent).mkdir(parents=True)
    for name in ("pyproject.toml", "CHANGELOG.md", CHART):
        shutil.copy(ROOT / name, there / name)
    changes = there / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace(f"Unreleased ({VERSION})", VERSION))
    author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=there, check=True)
    return there


def release(checkout: Path, version: str, cache: Path, url: str = URL, early: str = "") -> str:
    """What a release that is refused says."""
    done = subprocess.run(
        [checkout / "dev" / "release.sh", "build", version],
        env={**os.environ, "ESPALIER_CACHE": str(cache), "URL": url, "UNRELEASED": early},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert not (checkout / "out").exists()
    return done.stderr


def test_another_version_than_the_projects_is_refused(checkout: Path, tmp_path: Path) -> None:
    told = release(checkout, "9.9.9", tmp_path)
    assert f"VERSION is '9.9.9', and pyproject.toml says {VERSION}: give VERSION={VERSION}" in told


def test_a_chart_of_another_version_is_refused(checkout: Path, tmp_path: Path) -> None:
    there = tmp_path / "checkout"
    shutil.copytree(checkout, there)
    text = (there / CHART).read_text()
    (there / CHART).write_text(text.replace(f"appVersion: {VERSION}", "appVersion: 0.0.9"))
    told = release(there, VERSION, tmp_path)
    assert f"charts/espalier/Chart.yaml says 0.0.9 and {VERSION}" in told


def test_a_check_names_every_file_that_differs(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
        (directory / "SAME").write_text("the same")
        for name in ("A", "B"):
            (directory / name).write_text(f"{name} of {directory.name}\n")
    text = (ROOT / "dev" / "release.sh").read_text()
    functions = re.findall(r"^differences?\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    script = "\n".join(["set -euo pipefail", *functions, f"differences {one} {two}"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line in ("A", "B", "SAME")] == ["A", "B"]
    assert "  > B of two" in done.stdout.splitlines()


def test_what_no_commit_has_is_not_released(checkout: Path, tmp_path: Path) -> None:
    extra = checkout / "dev" / "extra"
    extra.touch()
    assert "the checkout has changes that no commit has" in release(checkout, VERSION, tmp_path)
    extra.unlink()


@pytest.mark.parametrize("title", ["0.0.1", f"Unreleased ({VERSION})"])
def test_a_version_without_a_section_of_the_changelog_is_refused(
    checkout: Path, tmp_path: Path, title: str
) -> None:
    there = tmp_path / "checkout"
    shutil.copytree(checkout, there)
    (there / "CHANGELOG.md").write_text(f"# Changelog\n\n## {title}\n\nold\n")
    assert f"CHANGELOG.md has no section of {VERSION}" in release(there, VERSION, tmp_path)
    if title != "0.0.1":
        # To try one it is enough, and the next thing is looked at.
        told = release(there, VERSION, tmp_path, early="yes")
        assert "the checkout has changes that no commit has" in told


@pytest.mark.parametrize("url", ["", "http://downloads.example.com", "https:///espalier"])
def test_a_plugin_without_an_address_is_refused(checkout: Path, tmp_path: Path, url: str) -> None:
    assert f"URL is '{url}': give URL=https://…" in release(checkout, VERSION, tmp_path, url)


def packaged(directory: Path, *options: str) -> Path:
    """The chart of a release with these digests."""
    directory.mkdir(exist_ok=True)
    digests = [f"{name}={digest}" for name, digest in DIGESTS.items()]
    script = ROOT / "dev" / "release_chart.py"
    command = [sys.executable, str(script), VERSION, "1700000000", str(directory)]
    subprocess.run([*command, *digests, *options], check=True)
    return directory / f"espalier-{VERSION}.tgz"


def rendered(chart: Path, *values: str) -> list[dict[str, Any]]:
    sets = [part for value in (*values, "namespaces={ml}") for part in ("--set", value)]
    command = ["template", "espalier", str(chart), "--kube-version", "1.35.0", *sets]
    done = subprocess.run([binary("helm"), *command], capture_output=True, text=True, check=True)
    return [item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item]


def test_a_released_chart_runs_the_released_images_and_no_others(tmp_path: Path) -> None:
    chart = packaged(tmp_path, "--registry", "registry.example/team")
    text = yaml.safe_dump_all(rendered(chart))
    found = set(re.findall(r"registry\.example/team/\S+", text))
    assert found == {
        f"registry.example/team/espalier/{name}:{VERSION}@{digest}"
        for name, digest in DIGESTS.items()
    }


def test_without_a_registry_the_chart_names_digests_and_asks_where_they_are(
    tmp_path: Path,
) -> None:
    chart = packaged(tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        rendered(chart)
    assert "images.operator is not set" in refused.value.stderr
    here = [f"images.{name}=mine/{name}:1" for name in PARTS]
    assert f"mine/runner:1@{DIGESTS['runner']}" in yaml.safe_dump_all(rendered(chart, *here))


def test_the_same_release_gives_the_same_chart_on_any_day(tmp_path: Path) -> None:
    one, two = packaged(tmp_path / "one"), packaged(tmp_path / "two")
    os.utime(one, (0, 0))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_of_a_workflow_is_one_commit(workflow: Path) -> None:
    used = re.findall(r"^\s*-? *uses: *(.*)$", workflow.read_text(), re.MULTILINE)
    assert used
    loose = [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", line)]
    assert loose == []


def test_the_release_may_do_what_it_does_and_no_more() -> None:
    told = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())
    assert told["permissions"] == {}
    assert {name: job["permissions"] for name, job in told["jobs"].items()} == {"release": NEEDED}
    (checkout, *_) = told["jobs"]["release"]["steps"]
    assert checkout["with"]["persist-credentials"] is False
    # What a user can write, such as the name of a tag, reaches a shell as a variable alone.
    scripts = [step.get("run", "") for step in told["jobs"]["release"]["steps"]]
    assert [script for script in scripts if "${{" in script] == []


def test_a_command_that_fails_before_a_pipe_ends_the_release() -> None:
    told = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())
    # By this name alone GitHub adds pipefail.
    assert told["defaults"] == {"run": {"shell": "bash"}}
    assert [step for step in told["jobs"]["release"]["steps"] if "shell" in step] == []


@pytest.mark.timeout(600)
def test_a_linter_of_workflows_finds_no_fault() -> None:
    subprocess.run([ROOT / "dev/tools.sh", "actionlint"], check=True)
    done = subprocess.run(
        [binary("actionlint"), "-no-color", *WORKFLOWS], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
