"""The stream of logs: order kept, nothing dropped, nobody waits for its reader."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from espalier.kube.log_stream import LogStream

# More than a pipe holds (64 KiB).
TEXTS = [f"{number} {'x' * 100}\n" for number in range(3000)]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def test_lines_that_nobody_reads_yet_hold_up_nobody_and_arrive_in_order(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    stream = LogStream(writer)
    for text in TEXTS:
        stream.write(text)
        stream.flush()
    wanted = "".join(TEXTS).encode()
    found = b""
    while len(found) < len(wanted):
        found += os.read(reader, 65536)
    assert found == wanted
    stream.close()
    os.close(writer)


def test_closing_waits_until_everything_is_written(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = LogStream(writer)
    for text in TEXTS[:100]:
        stream.write(text)
    stream.close()
    os.close(writer)
    with os.fdopen(os.dup(reader), "rb") as read:
        assert read.read() == "".join(TEXTS[:100]).encode()
