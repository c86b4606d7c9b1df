"""The bodies of logged commands: a file for each, for as long as something needs it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from espalier.trainer.volume.durable_files import make_directory, write_file


class Bodies:
    """Files by the number of their command, or by the name that the inbox gave them."""

    def __init__(self, directory: Path) -> None:
        make_directory(directory)
        self.directory = directory

    def write(self, number: int, data: bytes) -> None:
        """Keeps the body of a command."""
        write_file(self._file(number), data)

    def read(self, number: int, name: str) -> bytes:
        """The body of a command; ``name`` is the inbox's, empty for none."""
        return self._file(number, name).read_bytes()

    def remove(self, number: int) -> None:
        """Removes the body of a command that did not come by the inbox."""
        self._file(number).unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        """Removes a body that came by the inbox; a failure leaves it for the next ``keep_only``."""
        with suppress(OSError):
            (self.directory / name).unlink(missing_ok=True)

    def keep_only(self, commands: Iterable[tuple[int, str]], waiting: set[Path]) -> None:
        """Removes what neither commands, by number and name, nor those that wait need.

        Raises:
            OSError: of the volume; what is left is for the next call.
        """
        needed = {self._file(*command) for command in commands} | waiting
        for path in self.directory.iterdir():
            if path not in needed:
                path.unlink(missing_ok=True)

    def write_referred(self, number: int, data: bytes) -> None:
        """Keeps the log-probs of the policy that a command is held near."""
        write_file(self._referred(number), data)

    def referred(self, number: int) -> bytes:
        """Those log-probs; empty if none are kept, as by earlier versions."""
        path = self._referred(number)
        return path.read_bytes() if path.exists() else b""

    def _referred(self, number: int) -> Path:
        return self.directory / f"{number:09d}.referred"

    def _file(self, number: int, name: str = "") -> Path:
        return self.directory / (name or f"{number:09d}.json")
