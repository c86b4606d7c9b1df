"""Polls for the commits of a trainer, with the trainer itself played."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

import pytest

from espalier.api.wire.commits import CommitPage
from espalier.controllers.peers.commit_streams import CommitStreams
from espalier.controllers.peers.peer import Peer
from espalier.controllers.peers.trainer_client import Trainer
from espalier.core.pods.pods import Pod
from espalier.telemetry import spans

POD = Pod("arith-trainer-0", "uid-1", "trainer", "127.0.0.1", "one", True, True, False, False)


def carried() -> dict[str, str]:
    """The trace that a request would carry on from here."""
    headers: dict[str, str] = {}
    spans.carry_on(headers)
    return headers


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traces are carried on, and none is kept: nothing is sent to where nobody listens."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    spans.start({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "here")
    yield
    spans.stop()


class Polled:
    """A trainer that says with which trace it was asked."""

    def __init__(self) -> None:
        self.asked: asyncio.Future[dict[str, str]] = asyncio.Future()

    async def commits(self, peer: Peer, after: int, wait: float) -> CommitPage:
        self.asked.set_result(carried())
        return await asyncio.Future()


async def test_polls_for_commits_are_not_of_the_pass_that_began_to_follow_them(
    recording: None,
) -> None:
    trainer = Polled()
    streams = CommitStreams(cast(Trainer, trainer), lambda *_: None)
    with spans.span("reconcile TrainableModel"):
        assert carried()
        streams.follow("ml", "arith", POD)
    assert await asyncio.wait_for(trainer.asked, 60) == {}
    await streams.close()
