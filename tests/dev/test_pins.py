"""What is installed is what was pinned: versions have hashes, installers ask for them."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from tests.dev.test_scripts import COMMON, ROOT, bash

CACHE = Path(os.environ.get("ESPALIER_CACHE") or Path.home() / ".cache/espalier")
VERSIONS = ROOT / "constraints.txt"
HASHES = ROOT / "constraints.hashes.txt"
INSTALLERS = ROOT / "dev" / "installers.txt"
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)
# Environments of tests alone, never shipped: others' packages as their users install them.
OF_TESTS_ALONE = {"hud.sh", "tinker.sh", "mlflow.sh", "packages.sh", "protobuf.sh"}


def hashed(path: Path) -> dict[str, list[str]]:
    """The hashes of each ``name==version``."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if match := PINNED.match(line):
            pin = match[0]
            found[pin] = []
        elif line.startswith("    --hash="):
            found[pin].append(line.split()[0])
    return found


def test_every_pinned_version_has_the_hashes_of_its_files() -> None:
    hashes = hashed(HASHES)
    assert list(hashes) == [match[0] for match in PINNED.finditer(VERSIONS.read_text())]
    for pins in (hashes, hashed(INSTALLERS)):
        assert [pin for pin, sums in pins.items() if not sums] == []
        sums = [one for found in pins.values() for one in found]
        assert {re.sub(r"[0-9a-f]{64}$", "", one) for one in sums} == {"--hash=sha256:"}


def test_no_list_of_pins_says_where_files_are_downloaded() -> None:
    for path in (VERSIONS, HASHES, INSTALLERS, ROOT / "docs" / "constraints.txt"):
        assert "://" not in path.read_text(), path.name


def test_every_extra_is_pinned_the_gpus_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        asked += extra
    pinned = {name.replace("_", "-") for name, _ in PINNED.findall(VERSIONS.read_text())}
    names = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in asked}
    assert {name.replace("_", "-") for name in names} - pinned == set()


@pytest.mark.parametrize("pin", ["nobody==1.0", "kopf==0.1"])
def test_what_has_no_hash_is_named_and_nothing_is_installed(pin: str, tmp_path: Path) -> None:
    done = bash(f"{COMMON}\necho {pin} | hashed {HASHES}", tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: constraints.hashes.txt has no hash of {pin}: run 'make constraints'.\n"
    )


def test_a_file_that_was_changed_in_its_registry_is_not_installed(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    wheel = registry / "thing-1.0-py3-none-any.whl"
    write_wheel(wheel, "print('as it was')")
    pins = tmp_path / "pins.txt"
    pins.write_text(f"thing==1.0 \\\n    --hash=sha256:{sha256(wheel)}\n")
    install = (
        f"{COMMON}\necho thing==1.0 | hashed {pins} >{tmp_path}/requirements.txt\n"
        f"$(uv) pip install --no-cache --no-index --find-links {registry} "
        f"--target {tmp_path}/there --require-hashes --no-deps -r {tmp_path}/requirements.txt"
    )
    write_wheel(wheel, "print('changed')")
    refused = bash(install, CACHE)
    assert refused.returncode != 0
    assert "Hash mismatch" in refused.stderr
    write_wheel(wheel, "print('as it was')")
    assert bash(install, CACHE).returncode == 0
    assert (tmp_path / "there" / "thing.py").read_text() == "print('as it was')"


def test_every_installation_checks_hashes_but_those_of_tests_alone() -> None:
    # The package itself is this checkout.
    checked = re.compile(r'--require-hashes|-e "\$root"')
    scripts = [*(ROOT / "dev").rglob("*.sh"), *(ROOT / "images").rglob("*.sh")]
    loose = {
        path.name
        for path in scripts
        for line in path.read_text().replace("\\\n", " ").splitlines()
        if re.search(r'pip"? install ', line)
        if not line.lstrip().startswith("#") and not checked.search(line)
    }
    assert loose == OF_TESTS_ALONE


def test_every_go_module_is_pinned_by_its_sum() -> None:
    for module in (ROOT / "dev" / "go").iterdir():
        told, sums = (module / "go.mod").read_text(), (module / "go.sum").read_text()
        required = re.findall(r"^\t(\S+) (v\S+)", told, re.MULTILINE)
        replaced = re.findall(r"^\t(\S+) => (\S+) (v\S+)", told, re.MULTILINE)
        instead = {name: (other, version) for name, other, version in replaced}
        taken = [instead.get(name, (name, version)) for name, version in required]
        assert len(taken) > 5
        assert [one for one in taken if f"{one[0]} {one[1]}/go.mod h1:" not in sums] == []
    scripts = "\n".join(path.read_text() for path in (ROOT / "dev").glob("*.sh"))
    assert not re.search(r"GONOSUMDB|GONOSUMCHECK|GOINSECURE|GOSUMDB=off", scripts)


def write_wheel(path: Path, code: str) -> None:
    """A wheel of one module."""
    about = "thing-1.0.dist-info"
    files = {
        "thing.py": code,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(name), text)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
