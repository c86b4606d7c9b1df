"""A change of files between hashing and loading is seen, also one that was taken back."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.unchanged import ChangedError, note

WEIGHTS = "model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "sha256-base"
    (directory / "optimizer").mkdir(parents=True)
    (directory / WEIGHTS).write_bytes(b"weights" * 1000)
    (directory / "optimizer" / "moments.safetensors").write_bytes(b"moments")
    return directory


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as opened:
        opened.write(content)


def bytes_and_back(base: Path) -> None:
    """The time of the last write, too."""
    file = base / WEIGHTS
    before, then = file.read_bytes(), file.stat()
    overwrite(file, b"WEIGHTS")
    overwrite(file, before)
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (before, then.st_mtime_ns)


def file_and_back(base: Path) -> None:
    file, aside = base / WEIGHTS, base.parent / "aside"
    file.rename(aside)
    file.write_bytes(b"others" * 1000)
    aside.rename(file)


def directory_and_back(base: Path) -> None:
    aside = base.parent / "aside"
    base.rename(aside)
    base.mkdir()
    base.rmdir()
    aside.rename(base)


def one_more_for_a_moment(base: Path) -> None:
    (base / "tokenizer.json").write_text("{}")
    (base / "tokenizer.json").unlink()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (lambda base: overwrite(base / WEIGHTS, b"W"), f"{WEIGHTS} of sha256-base"),
    "a byte, and back": (bytes_and_back, f"{WEIGHTS} of sha256-base"),
    "a byte further down": (
        lambda base: overwrite(base / "optimizer" / "moments.safetensors", b"M"),
        "optimizer/moments.safetensors of sha256-base",
    ),
    "another file, and back": (file_and_back, "the directory sha256-base"),
    "another directory, and back": (directory_and_back, "the directory sha256-base"),
    "a file more": (
        lambda base: (base / "tokenizer.json").write_text("{}"),
        "the directory sha256-base",
    ),
    "a file more for a moment": (one_more_for_a_moment, "the directory sha256-base"),
    "a file less": (lambda base: (base / WEIGHTS).unlink(), "the directory sha256-base"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_after_it_was_noted_is_named(base: Path, name: str) -> None:
    change, named = CHANGES[name]
    noted = note(base)
    (base / WEIGHTS).read_bytes()
    noted.check()
    change(base)
    with pytest.raises(ChangedError) as seen:
        noted.check()
    assert seen.value.problem.reason == "FilesChanged"
    assert seen.value.problem.detail.startswith(f"{named} was changed after ")


def test_so_is_what_is_written_through_memory_that_was_mapped_and_changed_before(
    base: Path,
) -> None:
    """The kernel notes the first such change alone, until what was changed is on the disk."""
    with (base / WEIGHTS).open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        earlier = note(base)
        mapped[0] = 1
        try:
            earlier.check()
        except ChangedError:
            pass
        else:
            pytest.skip("the file system of this directory never notes it")
        noted = note(base)
        mapped[1] = 2
        with pytest.raises(ChangedError):
            noted.check()


@pytest.mark.parametrize("stranger", ["link", "pipe"])
def test_what_is_no_file_is_never_called_unchanged(base: Path, stranger: str) -> None:
    """Behind a link others may change what they like. Nobody who writes a pipe is waited for."""
    if stranger == "link":
        (base / "config.json").symlink_to(base.parent / "elsewhere.json")
        (base.parent / "elsewhere.json").write_text("{}")
    else:
        os.mkfifo(base / "config.json")
    with pytest.raises(ChangedError, match=r"config\.json"):
        note(base).check()


LOADS = """
import sys
from multiprocessing import get_context
from pathlib import Path
from time import sleep
from espalier.unchanged import end_if_changed, note

base = Path(sys.argv[1])
noted = note(base)
child = get_context("fork").Process(target=sleep, args=(600,))
child.start()
if sys.argv[2] == "altered":
    (base / "model.safetensors").write_bytes(b"others")
end_if_changed(noted)
child.kill()
print("served", flush=True)
"""


@pytest.mark.parametrize("how", ["as it was", "altered"])
def test_a_process_that_has_loaded_what_was_changed_ends_and_says_why(
    base: Path, tmp_path: Path, how: str
) -> None:
    """With its children, which hold what was loaded: ``run`` waits for who has its output open."""
    left = tmp_path / "termination-log"
    left.touch()
    ended = subprocess.run(
        [sys.executable, "-c", LOADS, str(base), how],
        env=os.environ | {"ESPALIER_TERMINATION_LOG": str(left)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = ended.stdout.splitlines()
    if how == "as it was":
        assert (ended.returncode, said, left.read_text()) == (0, ["served"], "")
        return
    assert ended.returncode == 1
    problem = json.loads(left.read_text())
    assert [json.loads(line) for line in said] == [problem]
    assert problem["reason"] == "FilesChanged"
    assert WEIGHTS in problem["detail"]
