"""HTTPS, by the certificate of a Secret that may be replaced while the gateway serves."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

# The keys of a Secret of type kubernetes.io/tls, which are its files where it is mounted.
CHAIN, KEY = "tls.crt", "tls.key"
POLL_SECONDS = 10.0

_log = logging.getLogger(__name__)


class CertificateError(Exception):
    """The files are no certificate with its key; ``str`` says which, and why."""


class Certificate:
    """The certificate of a directory; raises CertificateError if it holds none.

    ``context`` is for a server: connections that begin later have the certificate of then.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen = self._stamp()
        self.context = _context()
        self._load(self.context)

    async def follow(self, seconds: float = POLL_SECONDS) -> None:
        """Takes each new certificate; one that is none leaves the one before in use."""
        while True:
            await asyncio.sleep(seconds)
            found = self._stamp()
            if found == self._seen:
                continue
            self._seen = found
            try:
                # Tried first: the context in use would keep half of what does not fit together.
                self._load(_context())
                self._load(self.context)
                _log.info("serving a new certificate", extra={"directory": str(self._directory)})
            except CertificateError as error:
                _log.error("the certificate stays as it was", extra={"error": str(error)})

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._directory / CHAIN, self._directory / KEY)
        except OSError as error:
            # ssl.SSLError is one too.
            raise CertificateError(
                f"{self._directory}: {CHAIN} and {KEY} are no certificate with its key: {error}"
            ) from error

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes whenever the files do; the kubelet replaces them by moving a link."""
        found = []
        for name in (CHAIN, KEY):
            try:
                stat = (self._directory / name).stat()
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)


def _context() -> ssl.SSLContext:
    return ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
