"""The public keys of a mounted file, which is replaced when keys rotate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from espalier.identity import PublicKeys, TrustedKeys

# The file is looked at no more often.
LOOK_SECONDS = 1.0

_log = logging.getLogger(__name__)


class KeyFile:
    """The keys of a file; raises ValueError if it holds none at first.

    A file that cannot be read later leaves the keys as they were: a pod that trusted nobody would
    serve nobody.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._text = self._read()
        self._keys = PublicKeys.read(self._text)
        self._looked = clock()

    def now(self) -> PublicKeys:
        """The keys of this moment."""
        if self._clock() - self._looked >= LOOK_SECONDS:
            self._looked = self._clock()
            self._look()
        return self._keys

    def _look(self) -> None:
        try:
            text = self._read()
            if text != self._text:
                # Remembered although it may be wrong: each text is complained of once.
                self._text = text
                self._keys = PublicKeys.read(text)
                _log.info("the public keys were replaced", extra={"file": str(self._path)})
        except ValueError as error:
            _log.error("the public keys stay as they were", extra={"error": str(error)})

    def _read(self) -> str:
        try:
            return self._path.read_text()
        except OSError as error:
            raise ValueError(f"{self._path} cannot be read: {error.strerror}") from error


def trusted(text: str) -> TrustedKeys:
    """The keys that a variable gives: their JSON, or the absolute path of a file of it."""
    return KeyFile(Path(text)) if text.startswith("/") else PublicKeys.read(text)
