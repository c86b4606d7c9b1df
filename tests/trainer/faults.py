"""Fault injection: every effect on the volume, before and after, by kill -9 or a power loss.

An effect is a call that changes what another process or a reboot would see: a file opened for
writing or written, fsync, rename, unlink, rmdir, mkdir, chmod, a safetensors file, a statement of
SQLite (COMMIT among them), and the moments at which a forward pass or an acknowledgement ends. A
forked trainer dies by SIGKILL before or after the n-th. A power loss also leaves the worst disks
that POSIX permits:

``kill``    everything that was written is there (the page cache survives the process)
``empty``   every name is there, contents that were not synced are empty
``torn``    every name is there, contents that were not synced are cut in half
``undone``  names and contents are those of the last sync of their directory and file

SQLite's own files are taken as durable from COMMIT on: the log opens them with synchronous = FULL
and a rollback journal, which is SQLite's promise for that case; whether the directory that holds
them survives is not taken for granted.

``python -m tests.trainer.faults`` tries every point under every disk and prints a report.
"""

from __future__ import annotations

import argparse
import collections
import os
import resource
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tests.trainer import tiny
from tests.trainer.forking import in_a_fork
from tests.trainer.tiny import Volume

from espalier.api.wire.base import Wire
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.commands import Empty
from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy
from espalier.trainer.volume import command_log as log_module
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.command_log import Kind

Disk = Literal["kill", "empty", "torn", "undone"]
DISKS: tuple[Disk, ...] = get_args(Disk)
ACKNOWLEDGED = "acknowledged"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
SCRIPT: list[tuple[Kind, Wire]] = [
    ("forward-backward", tiny.forward_backward(0)),
    ("optim-step", tiny.optim_step(cursor={"next": 1})),
    ("forward-backward", tiny.forward_backward(2)),
    ("zero-grad", Empty()),
    ("forward-backward", tiny.forward_backward(3)),
    ("forward-backward", tiny.forward_backward(4)),
    ("optim-step", tiny.optim_step(cursor={"next": 2}, rollouts=[{"reward": 1.0}])),
]


@dataclass(frozen=True)
class Outcome:
    """What a fresh process finds: commits, weights and the state it reports."""

    digests: tuple[str, ...]
    weights: dict[str, torch.Tensor]
    state: object

    def same(self, other: Outcome) -> bool:
        """Bit for bit."""
        return (self.digests, self.state) == (other.digests, other.state) and all(
            torch.equal(value, other.weights[name]) for name, value in self.weights.items()
        )


class Durable:
    """What of a directory tree would survive a power loss: last synced contents and names."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        for folder in self._folders():
            self.synced(folder)
            for path in self._files(folder):
                self.synced(path)

    def synced(self, path: Path) -> None:
        """Takes what a file or directory holds now as safe."""
        if path.is_dir():
            self._names[path.stat().st_ino] = {
                child.name: (child.stat().st_ino, child.is_dir())
                for child in path.iterdir()
                if not child.is_symlink()
            }
        elif not path.is_symlink():
            self._contents[path.stat().st_ino] = path.read_bytes()

    def lose_power(self, disk: Disk) -> None:
        """Leaves the tree as ``disk`` says."""
        if disk == "undone":
            self._undo(self._root)
        elif disk != "kill":
            for folder in self._folders():
                for path in self._files(folder):
                    data = path.read_bytes()
                    if not _exempt(path) and self._contents.get(path.stat().st_ino) != data:
                        path.write_bytes(data[: len(data) // 2 if disk == "torn" else 0])

    def _undo(self, folder: Path) -> None:
        names = self._names.get(folder.stat().st_ino, {})
        for child in list(folder.iterdir()):
            if child.is_symlink() or (_exempt(child) and not child.is_dir()):
                continue
            known = names.get(child.name)
            if known is not None and known[0] == child.stat().st_ino:
                continue
            self._remove(child)
        for name, (inode, is_folder) in names.items():
            path = folder / name
            if _exempt(path):
                continue
            if is_folder:
                self._restore(path, inode)
            else:
                path.write_bytes(self._contents.get(inode, b""))

    def _restore(self, path: Path, inode: int) -> None:
        if path.is_dir():
            self._undo(path)
            return
        path.mkdir()
        for name, (child, is_folder) in self._names.get(inode, {}).items():
            if is_folder:
                self._restore(path / name, child)
            else:
                (path / name).write_bytes(self._contents.get(child, b""))

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            for child in list(path.iterdir()):
                self._remove(child)
            path.rmdir()
        else:
            path.unlink()

    def _folders(self) -> list[Path]:
        return [Path(folder) for folder, _, _ in os.walk(self._root)]

    def _files(self, folder: Path) -> list[Path]:
        return [p for p in folder.iterdir() if p.is_file() and not p.is_symlink()]


class Faults:
    """Counts the effects of this process and dies at the chosen one."""

    def __init__(self, root: Path, die_at: int, disk: Disk) -> None:
        self.points: list[str] = []
        self._root = root
        self._die_at = die_at
        self._disk = disk
        self._durable: Durable | None = None
        self._inside = False

    def arm(self) -> None:
        """Puts the faults under everything this process does from now on."""
        self._durable = Durable(self._root) if self._disk != "kill" else None
        for owner, name in [
            (os, "rename"),
            (os, "unlink"),
            (os, "rmdir"),
            (os, "mkdir"),
            (os, "chmod"),
            (os, "fchmod"),
            (Path, "write_bytes"),
            (Path, "write_text"),
            (tensor_files, "save_file"),
            (LocalCompute, "add_loss"),
        ]:
            setattr(owner, name, self._wrapped(name, getattr(owner, name)))
        os.fsync = self._wrapped("fsync", self._fsync(os.fsync))
        connect = sqlite3.connect
        log_module.sqlite3.connect = lambda *a, **k: Connection(connect(*a, **k), self)  # type: ignore[assignment]

    def effect(self, name: str, call: Callable[[], Any]) -> Any:
        """Runs an effect between two points; one inside another counts as one."""
        if self._inside:
            return call()
        self._inside = True
        try:
            self._point(f"before {name}")
            result = call()
            self._point(f"after {name}")
        finally:
            # A call that fails, as mkdir does on what is there, is no reason to look away for good.
            self._inside = False
        return result

    def _point(self, name: str) -> None:
        if len(self.points) == self._die_at:
            if self._durable is not None:
                self._durable.lose_power(self._disk)
            os.kill(os.getpid(), signal.SIGKILL)
        self.points.append(name)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            return self.effect(name, lambda: function(*arguments, **keywords))

        return wrapped

    def _fsync(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        def recorded(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if self._durable is not None:
                self._durable.synced(path)

        return recorded


class Connection:
    """A database whose statements that change something are effects."""

    def __init__(self, connection: sqlite3.Connection, faults: Faults) -> None:
        self._connection = connection
        self._faults = faults

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        verb = statement.split(maxsplit=1)[0]
        call = lambda: self._connection.execute(statement, values)  # noqa: E731
        if verb == "SELECT":
            return call()
        result: sqlite3.Cursor = self._faults.effect(f"SQL {verb}", call)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _exempt(path: Path) -> bool:
    """SQLite's files, the lock, and what the client of this harness keeps elsewhere."""
    return path.name.startswith("log.sqlite") or path.name in ("lock", ACKNOWLEDGED)


def new_volume(base: Volume, directory: Path) -> Volume:
    """An empty volume with the base, which is never written."""
    path = Path(tempfile.mkdtemp(dir=directory))
    (path / "bases").symlink_to(base.path / "bases")
    return Volume(path, base.base)


# What a client sends to an engine, from a command on; yields whenever one is acknowledged.
Client = Callable[[Engine, int], Iterator[None]]


def sends_commands(engine: Engine, done: int) -> Iterator[None]:
    """The script, each command answered before the next."""
    for seq in range(done, len(SCRIPT)):
        kind, request = SCRIPT[seq]
        answer = tiny.send(engine, kind, request, ("client", seq), term=1)
        assert answer.status == 200
        yield


def live(
    volume: Volume,
    policy: Policy,
    die_at: int = -1,
    disk: Disk = "kill",
    client: Client = sends_commands,
) -> list[str] | None:
    """One life of the trainer, resending what was not acknowledged; its points, None if it died."""
    report = volume.path.with_suffix(".points")
    answered = volume.path / ACKNOWLEDGED

    def work() -> None:
        faults = Faults(volume.path, die_at, disk)
        faults.arm()
        done = len(answered.read_text()) if answered.exists() else 0
        engine = tiny.engine(volume.path, volume.base, policy)
        engine.assign(tiny.assignment())
        for _ in client(engine, done):
            with answered.open("a") as file:
                file.write(".")
        faults._inside = True
        report.write_text("\n".join(faults.points))

    status = in_a_fork(work)
    if status == -signal.SIGKILL:
        return None
    assert status == 0, "the trainer failed instead of recovering"
    return report.read_text().split("\n")


def outcome(volume: Volume, policy: Policy) -> Outcome:
    """Reads the volume as the next process would, and verifies every checkpoint."""
    engine = tiny.engine(volume.path, volume.base, policy)
    try:
        digests = tuple(commit.digest for commit in engine.state.commits)
        for digest in digests:
            engine.state.store.verify("checkpoint", digest)
        weights = {n: p.detach().clone() for n, p in policy.parameters.items()}
        return Outcome(digests, weights, engine.state.report())
    finally:
        engine.state.log.close()


def survives(
    base: Volume, policy: Policy, directory: Path, die_at: int, disk: Disk, *, expected: Outcome
) -> bool:
    """Whether a training that dies once ends as the one that did not."""
    volume = new_volume(base, directory)
    assert live(volume, policy, die_at, disk) is None
    try:
        return live(volume, policy) is not None and outcome(volume, policy).same(expected)
    except AssertionError:
        return False


def main() -> int:
    """Tries every ``--every``-th point; the exit code says whether all survived."""
    parser = argparse.ArgumentParser(description="Fault injection for the trainer")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name, tempfile.TemporaryDirectory() as source:
        root = Path(name)
        (root / "base").mkdir()
        base = Volume(root / "base", tiny.write_base(root / "base", Path(source)))
        policy = tiny.policy(base.path, base.base)
        straight = new_volume(base, root)
        points = live(straight, policy) or []
        expected = outcome(straight, policy)
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        lost: list[str] = []
        for disk in DISKS:
            for die_at in range(arguments.offset, len(points), arguments.every):
                effect = points[die_at].split(" ", 1)[1]
                counts[disk, effect] += 1
                if not survives(base, policy, root, die_at, disk, expected=expected):
                    lost.append(f"{disk} at {die_at} ({points[die_at]})")
    print(f"points of the script: {len(points)}; tried: {sum(counts.values())}; lost: {len(lost)}")
    effects = sorted({effect for _, effect in counts})
    print(f"| effect | {' | '.join(DISKS)} |\n|---|{'---|' * len(DISKS)}")
    for effect in effects:
        print(f"| {effect} | {' | '.join(str(counts[d, effect]) for d in DISKS)} |")
    for line in lost:
        print(f"LOST: {line}")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU-seconds of the trainers: {usage.ru_utime + usage.ru_stime:.0f}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
