"""What a watch says that the cache holds already goes no further."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from espalier.kube.cache import Cache
from espalier.kube.echoes import News
from espalier.kube.informer import _NoMemories
from espalier.kube.objects import Body

KIND = "Checkpoint"


def version(name: str, at: int) -> Body:
    return {"metadata": {"name": name, "namespace": "n", "resourceVersion": str(at)}}


def line(type_: str, body: Body) -> bytes:
    return json.dumps({"type": type_, "object": body}).encode() + b"\n"


NEWS = [
    line("ADDED", version("new", 7)),
    line("MODIFIED", version("held", 6)),
    line("DELETED", version("held", 5)),
    line("BOOKMARK", version("", 5)),
    line("ERROR", {"kind": "Status", "code": 410}),
    b"no JSON\n",
]
ECHOES = [line("MODIFIED", version("held", 5)), line("ADDED", version("held", 4))]
STREAM = b"".join([ECHOES[0], *NEWS[:3], *ECHOES, *NEWS[3:], ECHOES[1]])


class Pieces:
    """A stream that arrives in these pieces."""

    def __init__(self, stream: bytes, cuts: list[int]) -> None:
        ends = sorted({*cuts, len(stream)})
        self._pieces = [stream[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def passed(stream: bytes, cuts: list[int]) -> bytes:
    cache = Cache()
    cache.put(KIND, version("held", 5))

    async def read() -> bytes:
        return b"".join(
            [data async for data in News(Pieces(stream, cuts), KIND, cache).iter_chunked(64)]
        )

    return asyncio.run(read())


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_only_news_goes_on_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    assert passed(STREAM, cuts) == b"".join(NEWS)


def test_a_line_that_the_end_cuts_short_goes_on_as_it_is() -> None:
    assert passed(NEWS[0] + NEWS[1][:20], []) == NEWS[0] + NEWS[1][:20]


async def test_kopf_remembers_no_object() -> None:
    memories = _NoMemories()
    await memories.recall({"metadata": {"uid": "u"}}, noticed_by_listing=False)
    assert [*memories.iter_all_memories()] == []
