"""The API keys of an ``espalier dev``, in a file in place of a Secret."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping
from pathlib import Path

Entries = Mapping[str, str]


class KeyFile:
    """The entries by name. One process changes them at a time; they can be read at any."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Entries:
        """The entries as they are; none if the file is not there."""
        try:
            content: dict[str, str] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return content

    def change(self, by: Callable[[Entries], Entries]) -> None:
        """Puts other entries in place of these."""
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            partial = self._path.with_suffix(".partial")
            partial.touch(mode=0o600)
            partial.write_text(json.dumps(dict(by(self.read()))))
            partial.replace(self._path)


class LocalKeys:
    """What a gateway needs of them. One machine has no service accounts that could be gone."""

    def __init__(self, file: KeyFile) -> None:
        self._file = file

    async def entries(self, namespace: str, *, newest: bool = False) -> Entries:
        """The entries as they are; there is one namespace."""
        del namespace, newest
        return self._file.read()

    async def account_uid(self, namespace: str, account: str) -> str | None:
        """The uid that every key of one machine has."""
        del namespace, account
        return ""
