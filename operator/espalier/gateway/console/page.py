"""The console's page: a few files that npm built, under a policy that lets nothing else run.

``dev/console.sh`` builds them beside this file. They hold no secret, so anybody may read them; what
they show comes by the token that its user types in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

from espalier.gateway.problems import RefusalError

# The page's addresses, which answer everybody.
PAGE = ("/console", "/console/", "/console/{file}")
BUILT = Path(__file__).parent / "built"
INDEX = "index.html"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
# No script and no style but the page's own files, no other origin, no frame around it.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time, and answered with 304: a new gateway brings a new page.
    hdrs.CACHE_CONTROL: "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, plain and compressed."""

    content_type: str
    plain: bytes
    gzip: bytes

    @property
    def tag(self) -> str:
        """Its entity tag."""
        return f'"{hashlib.sha256(self.plain).hexdigest()[:32]}"'


class Page:
    """Serves the files. ``directory`` is where they were built; without it each answer says so."""

    def __init__(self, directory: Path = BUILT) -> None:
        self._files = read(directory)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers the routes."""
        bare, *files = PAGE
        router.add_get(bare, self.redirect)
        for path in files:
            router.add_get(path, self.get)

    async def redirect(self, _: web.Request) -> web.Response:
        """To the address that the page's relative links start from."""
        return web.Response(status=308, headers={hdrs.LOCATION: "console/"})

    async def get(self, request: web.Request) -> web.Response:
        """A file of the page."""
        if not self._files:
            raise RefusalError(
                404,
                "ConsoleNotBuilt",
                "this gateway was installed without the console's page",
                "Build it with dev/console.sh, or use an image of the gateway",
            )
        file = self._files.get(request.match_info.get("file", INDEX))
        if file is None:
            raise RefusalError(404, "NotFound", "the console has no such file", "Open /console/")
        headers = {**HEADERS, hdrs.ETAG: file.tag, hdrs.VARY: hdrs.ACCEPT_ENCODING}
        if request.headers.get(hdrs.IF_NONE_MATCH) == file.tag:
            return web.Response(status=304, headers=headers)
        body = file.plain
        if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            body = file.gzip
            headers[hdrs.CONTENT_ENCODING] = "gzip"
        return web.Response(
            body=body, headers=headers, content_type=file.content_type, charset="utf-8"
        )


def read(directory: Path) -> dict[str, PageFile]:
    """The files of the page by name; none where it was not built."""
    if not directory.is_dir():
        return {}
    return {
        path.name: PageFile(
            TYPES[path.suffix], path.read_bytes(), path.with_name(f"{path.name}.gz").read_bytes()
        )
        for path in sorted(directory.iterdir())
        if path.suffix in TYPES
    }
