"""A change of files between hashing and loading is seen, also one that was taken back."""

from __future__ import annotations

import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
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


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda file: file.chmod(0o600), "(another ctime)"),
        (lambda file: os.utime(file, ns=(1, 1)), "(another mtime, ctime)"),
        (lambda file: overwrite(file, bytes(8000)), "(another size, mtime, ctime)"),
    ],
)
def test_what_differs_is_told(base: Path, change: Callable[[Path], object], how: str) -> None:
    """A ctime or an inode alone may be a backup, or a file system that keeps none."""
    noted = note(base)
    change(base / WEIGHTS)
    with pytest.raises(ChangedError) as seen:
        noted.check()
    assert seen.value.problem.detail.endswith(how)


def test_what_is_only_read_is_unchanged(base: Path) -> None:
    noted = note(base)
    for file in (base / name for name in noted.files):
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as held:
            assert subprocess.check_output(["cat", file]) == held[:] == file.read_bytes()
    noted.check()
    assert noted.stands()


def test_what_cannot_be_looked_at_is_not_called_changed(base: Path) -> None:
    noted = note(base)
    opened: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with suppress(OSError):
            while True:
                opened.append(os.open(base, os.O_RDONLY))
        with pytest.raises(ChangedError) as seen:
            noted.check()
        with pytest.raises(OSError, match="Too many open files"):
            note(base)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen.value.problem.reason == "FilesUnreadable"
    assert "Too many open files" in seen.value.problem.detail
    noted.check()


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A directory that is no tmpfs, as ``/tmp`` may be: that does not tell of mapped memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


def test_so_is_what_is_written_through_memory_that_was_mapped_and_changed_before(
    on_disk: Path,
) -> None:
    """The kernel notes the first such change alone, until what was changed is on the disk."""
    (on_disk / WEIGHTS).write_bytes(b"weights" * 1000)
    with (on_disk / WEIGHTS).open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        earlier = note(on_disk)
        mapped[0] = 1
        assert not earlier.stands()
        noted = note(on_disk)
        mapped[1] = 2
        with pytest.raises(ChangedError):
            noted.check()


@pytest.mark.parametrize("stranger", ["link", "pipe"])
def test_what_is_no_file_is_told_to_who_hashes_and_is_no_change(base: Path, stranger: str) -> None:
    """Nobody who writes a pipe is waited for."""
    if stranger == "link":
        (base / "config.json").symlink_to(base.parent / "elsewhere.json")
        (base.parent / "elsewhere.json").write_text("{}")
    else:
        os.mkfifo(base / "config.json")
    noted = note(base)
    assert noted.strange == "config.json of sha256-base is a link, or no plain file"
    noted.check()
    (base / "config.json").rename(base.parent / "aside")
    assert not noted.stands()


def test_a_directory_that_is_not_there_is_no_change_until_it_is(tmp_path: Path) -> None:
    noted = note(tmp_path / "sha256-base")
    noted.check()
    (tmp_path / "sha256-base").mkdir()
    assert not noted.stands()


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
