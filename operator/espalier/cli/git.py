"""The operations of git that ``espalier promote`` needs, in a working tree."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from espalier.cli.failure import CliError

TIMEOUT_SECONDS = 120
# How git push marks a reference that someone else moved first, with --porcelain.
REJECTED = ("[rejected]", "[remote rejected]")


class PushRejectedError(Exception):
    """The remote branch has moved; fetch and try again."""


@dataclass(frozen=True)
class Upstream:
    """The remote branch that the branch in use follows."""

    remote: str
    branch: str

    @property
    def tracking(self) -> str:
        """Where a fetch leaves it."""
        return f"{self.remote}/{self.branch}"


class WorkingTree:
    """A checked-out repository; every failure is a CliError with git's message."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise CliError(f"--git: {path} is not a directory: clone the repository there")
        self.path = Path(_git(path, "rev-parse", "--show-toplevel").strip())

    def manifests(self) -> list[Path]:
        """The YAML files that git tracks, relative to the root."""
        listed = self("ls-files", "-z", "--", "*.yaml", "*.yml")
        return [Path(name) for name in listed.split("\0") if name]

    def is_edited(self, file: Path) -> bool:
        """Whether a file differs from the last commit."""
        return bool(self("status", "--porcelain", "--", str(file)))

    def commit(self, file: Path, message: str) -> str:
        """Commits one file, whatever else is staged; its short hash."""
        self("commit", "--quiet", "--only", "--message", message, "--", str(file))
        return self("rev-parse", "--short", "HEAD").strip()

    def undo_commit(self) -> None:
        """Undoes the last commit and its changes; other edits stay."""
        self("reset", "--quiet", "--keep", "HEAD~1")

    def upstream(self) -> Upstream:
        """Where a push goes to."""
        branch = self("symbolic-ref", "--quiet", "--short", "HEAD").strip()
        try:
            remote = self("config", f"branch.{branch}.remote").strip()
            merge = self("config", f"branch.{branch}.merge").strip()
        except CliError as error:
            remedy = f"git branch --set-upstream-to=origin/{branch}"
            raise CliError(f"branch {branch} follows no remote branch: {remedy}") from error
        return Upstream(remote, merge.removeprefix("refs/heads/"))

    def update(self, upstream: Upstream) -> None:
        """Fetches, and puts local commits on top of the remote branch."""
        self("fetch", "--quiet", upstream.remote, upstream.branch)
        try:
            self("rebase", "--quiet", "--autostash", "FETCH_HEAD")
        except CliError:
            self("rebase", "--abort")
            raise

    def push(self, upstream: Upstream) -> None:
        """Pushes the branch in use; PushRejectedError when the remote one has moved."""
        to = f"HEAD:refs/heads/{upstream.branch}"
        try:
            self("push", "--quiet", upstream.remote, to)
        except CliError as error:
            if any(mark in str(error) for mark in REJECTED):
                raise PushRejectedError(str(error)) from error
            raise

    def __call__(self, *arguments: str) -> str:
        """What a git command prints."""
        return _git(self.path, *arguments)


def _git(path: Path, *arguments: str) -> str:
    # A prompt for a password would block a pipeline forever.
    command = ["git", "-c", "core.askPass=", "-C", str(path), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError as error:
        raise CliError("git is not on the PATH: install it") from error
    except subprocess.TimeoutExpired as error:
        raise CliError(f"git {arguments[0]} did not end within {TIMEOUT_SECONDS} s") from error
    if done.returncode != 0:
        output = done.stderr.strip() or done.stdout.strip()
        raise CliError(f"git {arguments[0]}: {output or f'failed with {done.returncode}'}")
    return done.stdout
