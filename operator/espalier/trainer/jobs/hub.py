"""Resumable downloads from the Hugging Face hub or a mirror of it.

It uses the hub's own client and adds a limit for every wait, and files that the next process
continues. Files come over plain HTTP and never over Xet, whose client keeps much of a large file in
memory and starts again from nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, close_session
from huggingface_hub.utils._http import default_client_factory

from espalier.trainer.jobs.hub_problems import HubError, refusal, retry_seconds
from espalier.trainer.jobs.hub_repository import Repository
from espalier.trainer.jobs.import_progress import Progress
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.volume.base_files import INDEX, WEIGHTS, check_space, gib, size_of

logger = logging.getLogger(__name__)

# The limit for a connection, for its next bytes, and for sending a request.
IDLE_SECONDS = 30.0
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
AT_ONCE = 4
REPORT_SECONDS = 15.0
MOST_FILES = 10_000
# The hub's limit on a file over plain HTTP.
LARGEST_BYTES = constants.MAX_HTTP_DOWNLOAD_SIZE
PARTIAL = ".partial"
# A broken connection loses one chunk; the client's default is 10 MiB.
constants.DOWNLOAD_CHUNK_SIZE = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A file of a repository; ``sha256`` is known for large files only."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Download:
    """Fetches a repository into a directory that outlives this process.

    ``token`` may be empty. It gives up after ``patience`` seconds without another byte.
    ``progress`` shows how much has come.
    """

    repository: Repository
    target: Path
    patterns: Sequence[str]
    token: str
    patience: float
    progress: Progress | None = None

    def run(self) -> dict[str, str]:
        """Fetches missing files; returns the SHA-256 by file that the hub promises.

        Raises:
            UserMistakeError: only a person can help: token, licence, name, revision, space.
            HubError: the hub could not be reached, or was too busy, for all of ``patience``.
        """
        with _timely_client():
            files = self._persist("the list of files", self._listing)
            self._check_room(files)
            self.target.mkdir(parents=True, exist_ok=True)
            # Small files first: a gated or missing file shows before gigabytes are fetched.
            files.sort(key=lambda file: file.size)
            with self._reported(files):
                for file in [file for file in files if not file.sha256]:
                    self._fetch(file)
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    for done in [pool.submit(self._fetch, file) for file in files if file.sha256]:
                        done.result()
        return {file.path: file.sha256 for file in files if file.sha256}

    def _listing(self) -> list[Remote]:
        api = HfApi(token=self.token or False)
        entries = api.list_repo_tree(
            self.repository.name, recursive=True, revision=self.repository.revision
        )
        files = [entry for entry in islice(entries, MOST_FILES) if isinstance(entry, RepoFile)]
        wanted = [e for e in files if any(fnmatch(e.path, pattern) for pattern in self.patterns)]
        if any(entry.path in (INDEX, WEIGHTS) for entry in wanted):
            # The same weights again, in another program's format.
            wanted = [entry for entry in wanted if not fnmatch(entry.path, "consolidated*")]
        for entry in wanted:
            path = PurePosixPath(entry.path)
            if path.is_absolute() or ".." in path.parts:
                raise UserMistakeError(
                    "BaseUnreadable",
                    f"{self.repository.field}: {constants.ENDPOINT} lists a file {entry.path!r}",
                    "use a hub whose files lie inside their repository",
                )
        return [Remote(e.path, e.size, e.lfs.sha256 if e.lfs else "") for e in wanted]

    def _check_room(self, files: Sequence[Remote]) -> None:
        large = [file for file in files if file.size > LARGEST_BYTES]
        if large:
            raise UserMistakeError(
                "FileTooLarge",
                f"{self.repository.field}: {large[0].path} has {gib(large[0].size)}, and the hub "
                f"gives at most {gib(LARGEST_BYTES)} a file over HTTP",
                "put the files into an image or on a claim",
            )
        missing = sum(max(0, file.size - self._have(file)) for file in files)
        check_space(self.target, missing, self.repository.field)

    @contextmanager
    def _reported(self, files: Sequence[Remote]) -> Iterator[None]:
        """Logs at intervals how much has come, while the block runs."""
        ended, total = threading.Event(), sum(file.size for file in files)
        if self.progress is not None:
            self.progress.begin(total, lambda: sum(self._have(file) for file in files))

        def report() -> None:
            while not ended.wait(REPORT_SECONDS):
                have = sum(self._have(file) for file in files)
                logger.info("%s: %s of %s", self.repository, gib(have), gib(total))

        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            ended.set()
            reporter.join()

    def _have(self, file: Remote) -> int:
        path = self.target / file.path
        return size_of(path) or size_of(_partial(path))

    def _fetch(self, file: Remote) -> None:
        path = self.target / file.path
        if path.is_file() and path.stat().st_size == file.size:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(path)
        self._persist(file.path, lambda: self._continue(file, partial), partial)
        partial.rename(path)

    def _continue(self, file: Remote, partial: Path) -> None:
        # Text is sent compressed, and a range would then mean other bytes.
        if not file.sha256 or (partial.is_file() and partial.stat().st_size > file.size):
            partial.unlink(missing_ok=True)
        url = hf_hub_url(self.repository.name, file.path, revision=self.repository.revision)
        with partial.open("ab") as stream:
            http_get(
                url,
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(token=self.token or False),
                expected_size=file.size,
                displayed_filename=file.path,
            )

    def _persist(self, what: str, act: Callable[[], T], growing: Path | None = None) -> T:
        """Repeats a call until it succeeds; growth of ``growing`` renews the patience."""
        heard, attempt, size = time.monotonic(), 0, size_of(growing)
        while True:
            try:
                return act()
            except UserMistakeError:
                raise
            except (HfHubHTTPError, HubError, OSError, ValueError) as error:
                if mistake := refusal(error, self.repository, given=bool(self.token)):
                    raise mistake from error
                asked = retry_seconds(error)
                if asked is None:
                    raise
                if (grown := size_of(growing)) > size:
                    heard, attempt, size = time.monotonic(), 0, grown
                backoff = min(FIRST_WAIT_SECONDS * 2.0**attempt, LONGEST_WAIT_SECONDS)
                attempt += 1
                wait = max(asked, backoff)
                if time.monotonic() + wait - heard > self.patience:
                    raise HubError.lasting(what, self.repository, error, self.patience) from error
                logger.warning("%s: %s; again in %.0f s", what, error, wait)
                time.sleep(wait)


class _Bytes(httpx2.SyncByteStream):
    """An answer's body, as it comes."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _told_at_once():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


@contextmanager
def _told_at_once() -> Iterator[None]:
    """Raises the network's errors as a ConnectionError, for which the client has no tries."""
    try:
        yield
    except httpx2.TransportError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


@contextmanager
def _timely_client() -> Iterator[None]:
    """The hub's client with a limit for every wait, and no waits and tries of its own."""

    def limit(request: httpx2.Request) -> None:
        request.extensions["timeout"] = httpx2.Timeout(IDLE_SECONDS).as_dict()

    def busy(response: httpx2.Response) -> None:
        # The client would sleep as long as Retry-After asks, even a day.
        if error := HubError.busy(response):
            raise error
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _Bytes(response.stream)

    def client() -> httpx2.Client:
        made: httpx2.Client = default_client_factory()
        send = made.send

        def sent(*arguments: Any, **options: Any) -> httpx2.Response:
            with _told_at_once():
                return send(*arguments, **options)

        made.send = sent  # type: ignore[method-assign]
        hooks = made.event_hooks
        made.event_hooks = {
            "request": [*hooks["request"], limit],
            "response": [*hooks["response"], busy],
        }
        return made

    set_client_factory(client)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
        close_session()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)
