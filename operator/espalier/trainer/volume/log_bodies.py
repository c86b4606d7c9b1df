"""The bodies of logged commands: a file for each, for as long as something needs it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from espalier.plain_file import NotPlainError, read_plain
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.durable_files import make_directory, volume_written, write_file
from espalier.trainer.volume.log_records import Key, Record

# What the inbox calls a file. A log that lies on a volume could name any other.
_OF_INBOX = re.compile(r"inbox-[0-9]{9,}")


class Bodies:
    """Files by the number of their command, or by the name that the inbox gave them."""

    def __init__(self, directory: Path) -> None:
        make_directory(directory)
        self.directory = directory

    def write(self, number: int, data: bytes) -> None:
        """Keeps the body of a command."""
        write_file(self._file(number), data)

    def read(self, record: Record) -> bytes:
        """The body of a command; raises what ``read_logged`` does."""
        if record.body and not _OF_INBOX.fullmatch(record.body):
            raise _altered(record.kind, record.key)
        file = self._file(record.number, record.body)
        return read_logged(file, record.digest, record.kind, record.key)

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

    def referred(self, record: Record) -> bytes:
        """Those log-probs; empty if none are kept, as by earlier versions.

        Raises:
            CommandError: 409 for what is no plain file, 507 for a fault of the volume.
        """
        try:
            return _plain(self._referred(record.number))
        except FileNotFoundError:
            return b""
        except NotPlainError:
            raise _altered(record.kind, record.key) from None

    def _referred(self, number: int) -> Path:
        return self.directory / f"{number:09d}.referred"

    def _file(self, number: int, name: str = "") -> Path:
        return self.directory / (name or f"{number:09d}.json")


def read_logged(path: Path, digest: str, kind: str, key: Key) -> bytes:
    """The body of a command, as it came.

    Raises:
        CommandError: 409 where there is no such file, or its bytes are not those of the SHA-256
            ``digest``; 507 for a fault of the volume.
    """
    try:
        data = _plain(path)
    except (FileNotFoundError, NotPlainError):
        raise _altered(kind, key) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise _altered(kind, key)
    return data


def _plain(path: Path) -> bytes:
    with volume_written(path):
        return read_plain(path)


def _altered(kind: str, key: Key) -> CommandError:
    return CommandError(
        409,
        "BodyAltered",
        f"the body of {kind} {key.seq} of {key.session} is gone from the volume, or is not the one "
        "that was logged",
        "send the step again, forward_backward first; and see who else writes the volume",
    )
