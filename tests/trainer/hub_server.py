"""A hub on loopback that speaks the routes which a download needs, and can be told to misbehave.

Routes: https://huggingface.co/docs/hub/api and what huggingface_hub asks for.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAME, REVISION = "owner/tiny", "c" * 40
Answer = tuple[int, dict[str, str]]


@dataclass
class Hub:
    """What it has and how it behaves.

    ``cuts`` are the numbers of bytes after which the next answers for weights break off.
    ``answers`` come first, in their order, whatever is asked for, and ``after_listing`` once files
    are; ``token`` is needed where it is set. Of some files other bytes than listed are sent
    (``swapped``), or another size is listed (``claimed``).
    """

    files: dict[str, bytes]
    cuts: list[int] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    token: str = ""
    gated: bool = False
    licensed: bool = True
    after_listing: list[Answer] = field(default_factory=list)
    swapped: dict[str, bytes] = field(default_factory=dict)
    claimed: dict[str, int] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    served_bytes: int = 0
    tls: ssl.SSLContext | None = None
    server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        if self.tls is not None:
            self.server.socket = self.tls.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        assert self.server is not None
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.server.server_address[1]}"

    def ranges(self) -> list[str]:
        """Of the requests for weights."""
        return [wanted for path, wanted, _ in self.seen if path.endswith(".safetensors")]

    def refusal(self, path: str, token: str) -> Answer | None:
        """As the hub itself refuses."""
        due = self.answers or (self.after_listing if "/resolve/" in path else [])
        return due.pop(0) if due else self._forbidden(path, token) or self._absent(path, token)

    def _absent(self, path: str, token: str) -> Answer | None:
        if NAME not in path:
            return (404 if token else 401), {"X-Error-Code": "RepoNotFound"}
        if REVISION not in path:
            return 404, {"X-Error-Code": "RevisionNotFound"}
        return None

    def _forbidden(self, path: str, token: str) -> Answer | None:
        if self.token and token not in ("", self.token):
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
        if self.token and not self.gated and not token:
            return 401, {"X-Error-Code": "RepoNotFound"}
        if self.gated and "/resolve/" in path and not (token and self.licensed):
            return (403 if token else 401), {"X-Error-Code": "GatedRepo"}
        return None


def of(directory: Path, **behaviour: Any) -> Hub:
    """A hub that has the files of a directory."""
    files = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    return Hub(files, **behaviour)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not path.startswith("/api/models/") and "/resolve/" not in path:
            # The client also asks for what has to do with no repository.
            self._answer(404, b"", {})
            return
        self.hub.seen.append((path, self.headers.get("Range", ""), token))
        if refused := self.hub.refusal(path, token):
            self._answer(refused[0], b"", refused[1])
        elif path.startswith("/api/models/"):
            self._answer(200, self._tree(), {"Content-Type": "application/json"})
        else:
            name = path.partition(f"/resolve/{REVISION}/")[2]
            self._file(name, self.hub.swapped.get(name, self.hub.files[name]))

    do_HEAD = do_GET  # noqa: N815

    def _tree(self) -> bytes:
        entries = []
        for name, content in self.hub.files.items():
            size = self.hub.claimed.get(name, len(content))
            entry: dict[str, Any] = {
                "type": "file",
                "path": name,
                "size": size,
                "oid": hashlib.sha1(content).hexdigest(),
            }
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
            entries.append(entry)
        return json.dumps(entries).encode()

    def _file(self, name: str, content: bytes) -> None:
        start, status, headers = 0, 200, dict[str, str]()
        if wanted := self.headers.get("Range"):
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = name.endswith(".safetensors") and self.hub.cuts
        self._answer(status, content[start:], headers, self.hub.cuts.pop(0) if cut else None)

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            sent = body if cut is None else body[:cut]
            self.wfile.write(sent)
            self.hub.served_bytes += len(sent)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
