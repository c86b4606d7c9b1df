"""The route of kept rollouts: the records of a checkpoint's step, read from the volume for people.

A sampler is there as long as its model is served; a trainer only while somebody trains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from espalier.api.wire.problem import Problem
from espalier.sampler import guard
from espalier.sampler.verified_files import StoreError, verified_lines
from espalier.sampler.verified_store import VerifiedCheckpoints

FILE = "rollouts.jsonl"
# Of one answer, which has one record at least.
PAGE_BYTES = 4 * 2**20
MAX_DIGITS = 9


class KeptRollouts:
    """Answers with records in the order that they were written."""

    def __init__(self, store: VerifiedCheckpoints) -> None:
        self._store = store

    async def get(self, request: Request) -> Response:
        """The records after the first ``after`` of ``checkpoint``, ``<slug>@<12 hex digits>``."""
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= MAX_DIGITS):
            return guard.problem_response(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                Problem(
                    reason="InvalidRequest",
                    detail="after is not a whole number",
                    remedy="send the number of records that you have",
                ),
            )
        name = request.query_params.get("checkpoint", "")
        try:
            page = await asyncio.to_thread(self._page, name, int(after))
        except StoreError as error:
            return guard.problem_response(HTTPStatus.NOT_FOUND, error.problem)
        return Response(page, media_type="application/json")

    def _page(self, name: str, after: int) -> bytes:
        directory, manifest = self._store.open(name)
        return page_of(verified_lines(directory, FILE, manifest), after)


def page_of(lines: Iterable[bytes], after: int) -> bytes:
    """JSON of ``records``, their ``total``, and ``next``: what to ask for as ``after``, or null."""
    records: list[bytes] = []
    size = total = 0
    full = False
    for total, line in enumerate(lines, 1):
        if total <= after or full:
            continue
        full = bool(records) and size + len(line) > PAGE_BYTES
        if not full:
            records.append(line.strip())
            size += len(line)
    end = after + len(records)
    more = str(end) if records and end < total else "null"
    return b'{"records":[%s],"total":%d,"next":%s}' % (b",".join(records), total, more.encode())
