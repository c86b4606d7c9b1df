"""The list of what an image is made of, and the licences that may be in it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from dev.bom.__main__ import CONSOLE
from dev.bom.licences import accepted, named, problem_of
from dev.bom.packages import LOCKFILE, python_packages, read_hashes
from dev.docs.licences_page import console_rows, rows

ROOT = Path(__file__).resolve().parents[2]
HASHES = read_hashes(ROOT / "constraints.hashes.txt")
AIOHTTP = next(pin for pin in HASHES if pin.startswith("aiohttp=="))
DIGEST = f"sha256:{7:064x}"
STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def add_package(root: Path, name: str, version: str, *lines: str) -> None:
    """A distribution as an installer leaves it."""
    about = root / "opt/venv/lib/python3.11/site-packages" / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    head = ("Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}")
    (about / "METADATA").write_text("\n".join([*head, *lines]) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of an image with one package of PyPI, ours, and one of Debian."""
    image = tmp_path / "image"
    add_package(image, "aiohttp", AIOHTTP.split("==")[1], "License-Expression: Apache-2.0 AND MIT")
    ours = image / "app" / "espalier-0.1.0.dist-info"
    ours.mkdir(parents=True)
    (ours / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: espalier\nVersion: 0.1.0\nLicense-Expression: Apache-2.0\n"
    )
    (image / "var/lib/dpkg").mkdir(parents=True)
    (image / "var/lib/dpkg/status").write_text(STATUS)
    (image / "usr/share/doc/libc6").mkdir(parents=True)
    (image / "usr/share/doc/libc6/copyright").write_text("License: LGPL-2.1+\n text\n")
    return image


def write(root: Path, output: Path) -> subprocess.CompletedProcess[str]:
    options = {"name": "operator", "version": "0.1.0", "digest": DIGEST, "made": "315532800"}
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    command = [sys.executable, "-m", "dev.bom", str(root), *arguments, "--output", str(output)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_document_names_each_package_with_licence_and_hashes(
    root: Path, tmp_path: Path
) -> None:
    done = write(root, tmp_path / "one.json")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "one.json").read_text()
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert fault is None, str(fault)[:500]
    told = json.loads(text)
    about = told["metadata"]["component"]
    assert (about["name"], about["hashes"][0]["content"]) == ("espalier/operator", DIGEST[7:])
    found = {component["name"]: component for component in told["components"]}
    assert set(found) == {"aiohttp", "espalier", "libc6"}
    assert found["aiohttp"]["licenses"] == [{"expression": "Apache-2.0 AND MIT"}]
    (files,) = found["aiohttp"]["externalReferences"]
    assert {sha["content"] for sha in files["hashes"]} == set(HASHES[AIOHTTP])
    assert found["libc6"]["purl"].startswith("pkg:deb/debian/libc6@2.36-9")
    assert found["libc6"]["licenses"] == [{"license": {"name": "LGPL-2.1+"}}]
    assert found["espalier"]["purl"] == "pkg:generic/espalier@0.1.0"


def test_an_image_with_the_consoles_page_is_made_of_its_npm_packages_too(
    root: Path, tmp_path: Path
) -> None:
    (root / CONSOLE).mkdir(parents=True)
    assert write(root, tmp_path / "one.json").returncode == 0
    text = (tmp_path / "one.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {part["purl"]: part for part in json.loads(text)["components"]}
    asked = json.loads((LOCKFILE.parent / "package.json").read_text())["dependencies"]
    assert {f"pkg:npm/{name}@{version}" for name, version in asked.items()} <= set(found)
    locked = json.loads(LOCKFILE.read_text())["packages"]
    preact = locked["node_modules/preact"]
    told = found[f"pkg:npm/preact@{preact['version']}"]
    assert told["licenses"] == [{"expression": preact["license"]}]
    ((sha512,),) = (files["hashes"] for files in told["externalReferences"])
    algorithm, _, content = preact["integrity"].partition("-")
    assert (sha512["alg"], algorithm) == ("SHA-512", "sha512")
    assert base64.b64encode(bytes.fromhex(sha512["content"])).decode() == content
    # What builds and tests the page is not in it.
    assert not [purl for purl in found if "esbuild" in purl or "typescript" in purl]


def test_the_same_image_gives_the_same_document(root: Path, tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        assert write(root, tmp_path / name).returncode == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_an_image_with_a_licence_that_is_not_accepted_gets_no_document(
    root: Path, tmp_path: Path
) -> None:
    add_package(root, "strict", "1", "License-Expression: AGPL-3.0-only")
    add_package(root, "silent", "1", "Classifier: License :: OSI Approved :: BSD License")
    done = write(root, tmp_path / "one.json")
    assert done.returncode == 1
    assert "strict is under AGPL-3.0-only, which is not accepted: leave it out" in done.stderr
    assert "silent tells no licence: read it, and write it under [read]" in done.stderr
    assert not (tmp_path / "one.json").exists()


def test_every_package_that_we_install_has_an_accepted_licence() -> None:
    found, _ = rows()
    assert len(found) > 200
    found += console_rows()
    problems = [problem_of(name, licence or None) for name, _, licence, _ in found]
    assert [problem for problem in problems if problem] == []


def test_nothing_is_named_that_no_package_needs() -> None:
    found, others = rows()
    found += console_rows()
    names = {name for name, *_ in found} | set(others)
    assert set(named().read) - names == set()
    expressions = " ; ".join(licence for *_, licence, _ in found)
    assert [licence for licence in named().accepted if licence not in expressions] == []
    assert all(len(reason) > 20 for reason in named().accepted.values())


@pytest.mark.parametrize(
    ("expression", "may"),
    [
        ("MIT", True),
        ("GPL-3.0-only OR Apache-2.0", True),
        ("GPL-3.0-only AND Apache-2.0", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("(MIT OR GPL-3.0-only) AND ISC", True),
        ("no licence at all", False),
    ],
)
def test_an_expression_is_accepted_where_a_choice_of_it_is(expression: str, may: bool) -> None:
    assert accepted(expression) is may


def test_names_are_read_in_one_spelling(root: Path) -> None:
    add_package(root, "Prompt_Toolkit", "3")
    site = root / "opt/venv/lib/python3.11/site-packages"
    assert [package.name for package in python_packages(site, {})] == ["aiohttp", "prompt-toolkit"]
