"""HTTP towards pods. A pod may be hostile, so nothing that it answers is taken on trust.

No redirect is followed, nothing is inflated, and every answer is read up to a limit.
"""

from __future__ import annotations

import aiohttp
from aiohttp import hdrs

from espalier.telemetry import http_client

# vLLM's server closes an idle connection after 5 s; ours go first, so that none is found dead.
KEEP_ALIVE_SECONDS = 3.0
IDENTITY = "identity"


class PodFaultError(Exception):
    """A pod answered as no pod of ours does; nothing of its answer is used.

    Args:
        reason: ``PodRedirected``, ``PodAnswerCompressed``, ``PodAnswerTooLarge`` or
            ``PodAnswerUnknown``.
        address: ``host:port`` of the pod.
        detail: what it did, in words that follow "the pod".
    """

    def __init__(self, reason: str, address: str, detail: str) -> None:
        super().__init__(f"{reason}: the pod at {address} {detail}")
        self.reason = reason
        self.address = address
        self.detail = detail


def pod_session() -> aiohttp.ClientSession:
    """Connections to pods; raises PodFaultError for an answer that redirects or is compressed.

    The caller closes it, and reads answers with ``read_answer``.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
        # Pods set no cookies, and none may pass from one model's to another's.
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={hdrs.ACCEPT_ENCODING: IDENTITY},
        middlewares=(_plain_answers, *http_client.middlewares()),
    )


async def read_answer(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole answer; PodFaultError once it is over ``limit`` bytes."""
    if (response.content_length or 0) > limit:
        raise too_large(response, limit)
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > limit:
            raise too_large(response, limit)
    return bytes(body)


def too_large(response: aiohttp.ClientResponse, limit: int) -> PodFaultError:
    """Also closes the connection: what is left of the answer is never read."""
    return _fault(response, "PodAnswerTooLarge", f"answers with more than {limit} bytes")


def unknown(response: aiohttp.ClientResponse, detail: str) -> PodFaultError:
    """For an answer that is none of the protocol's."""
    return _fault(response, "PodAnswerUnknown", detail)


async def _plain_answers(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    response = await handler(request)
    if 300 <= response.status < 400:
        raise _fault(response, "PodRedirected", f"answers with a redirect ({response.status})")
    if not 200 <= response.status < 600:
        raise unknown(response, f"answers with status {response.status}")
    encoding = response.headers.get(hdrs.CONTENT_ENCODING, IDENTITY)
    if encoding.lower() != IDENTITY:
        raise _fault(
            response, "PodAnswerCompressed", f"answers in Content-Encoding {encoding[:32]!r}"
        )
    return response


def _fault(response: aiohttp.ClientResponse, reason: str, detail: str) -> PodFaultError:
    response.close()
    return PodFaultError(reason, response.url.authority, detail)
