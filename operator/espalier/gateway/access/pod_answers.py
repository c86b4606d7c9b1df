"""Reads pods' answers within the gateway's memory."""

from __future__ import annotations

from http import HTTPStatus

import aiohttp

from espalier.api.wire.problem import Problem
from espalier.gateway.access.byte_budget import Hold
from espalier.gateway.problems import RefusalError, not_ready
from espalier.podclient import read_answer, too_large
from espalier.untrusted import read_model

# 16 answers of 16,000 tokens with their log-probs are 30 MB.
MAX_ANSWER_BYTES = 64 * 2**20
# Two copies of an answer exist while it is edited.
COPIES = 2
# How long an answer that is ready waits for memory. Sampling it again would cost more.
ROOM_SECONDS = 60.0


async def read_held(response: aiohttp.ClientResponse, hold: Hold) -> bytes:
    """Reads the whole answer; the hold counts its bytes.

    Raises:
        PodFaultError: it is larger than an answer may be.
        RefusalError: 503, other answers take the room, or the pod does not know our key.
    """
    if response.status == HTTPStatus.UNAUTHORIZED:
        raise not_ready(
            "PodKeyUnknown",
            f"{response.url.host} does not believe the gateway: it is another pod by now, or has "
            "not yet been shown the key that the gateway signs with",
            "send it again; a new key takes two minutes to reach a pod",
        )
    limit = min(MAX_ANSWER_BYTES, hold.capacity // COPIES)
    announced = response.content_length
    if announced is not None:
        if announced > limit:
            raise too_large(response, limit)
        await hold.take(announced * COPIES, ROOM_SECONDS)
        return await read_answer(response, announced)
    body = bytearray()
    async for part in response.content.iter_any():
        if len(body) + len(part) > limit:
            raise too_large(response, limit)
        # Do not wait: two requests that hold a part and wait for more would wait for each other.
        await hold.take(len(part) * COPIES)
        body += part
    return bytes(body)


def refusal(status: int, body: bytes) -> RefusalError:
    """A pod's refusal as the gateway's own; what may pass is 503, and says when to send it again.

    Raises:
        UnreadableError: the body is no ``wire.Problem``.
    """
    problem = read_model(Problem, body)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return not_ready(problem.reason, problem.detail, problem.remedy, from_pod=True)
    return RefusalError(status, problem.reason, problem.detail, problem.remedy, from_pod=True)
