"""A proxy on loopback: tunnels (CONNECT) and plain requests by their whole address."""

from __future__ import annotations

import select
import socket
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Proxy:
    """``asked`` are the hosts and ports that it was asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""

    def do_CONNECT(self) -> None:
        self.proxy.asked.append(self.path)
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as upstream:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: upstream, upstream: self.connection}
            while True:
                for readable in select.select(list(ends), [], [])[0]:
                    if not (content := readable.recv(1 << 16)):
                        return
                    ends[readable].sendall(content)

    def do_GET(self) -> None:
        self.proxy.asked.append(urlsplit(self.path).netloc)
        kept = {"Authorization", "Range"}
        headers = {name: value for name, value in self.headers.items() if name in kept}
        request = urllib.request.Request(self.path, headers=headers, method=self.command)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            answer = direct.open(request, timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.read())

    do_HEAD = do_GET  # noqa: N815
