"""What a call of a pod gives: its answer, its refusal, or why there is none."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from espalier import identity
from espalier.api.wire.commits import CommitPage
from espalier.api.wire.rollout_control import Served, ServeRequest
from espalier.api.wire.trainer import Assignment
from espalier.controllers.peers import peer
from espalier.controllers.peers.peer import Peer, PeerError
from espalier.controllers.peers.sampler_client import RolloutClient, RolloutError
from espalier.controllers.peers.trainer_client import TrainerClient, TrainerError
from espalier.core.names import audience
from espalier.kube.lease import LeadershipLostError
from espalier.podclient import pod_session
from espalier.untrusted import UnreadableError, read_model

KEY = identity.generate_private_key()
HERE = Peer("team", "arith", "127.0.0.1", "rollout", "uid-1")
REFUSED = '{"detail": "another base", "reason": "BaseMismatch", "remedy": "fork"}'


# 100 KiB on the wire.
BOMB = gzip.compress(b"0" * (100 * 2**20))


class Pod:
    """Answers every call in one way; keeps who called."""

    def __init__(self) -> None:
        self.status, self.content = 200, b""
        self.headers: dict[str, str] = {}
        self.callers: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        given = request.headers["Authorization"]
        name = audience("team", "arith", "rollout", "uid-1")
        claims = identity.verify(identity.PublicKeys.of(KEY, KEY), given, name)
        self.callers.append(claims.subject)
        return web.Response(status=self.status, body=self.content, headers=self.headers)


@pytest.fixture
async def pod(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    pod, app = Pod(), web.Application()
    app.router.add_route("*", "/{path:.*}", pod.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setattr(peer, "PORT", runner.addresses[0][1])
    yield pod
    await runner.cleanup()


async def serve() -> Served:
    async with pod_session() as session:
        return await RolloutClient(session, identity.Signer(KEY)).serve(
            HERE, ServeRequest(adapters=[])
        )


async def test_an_answer_is_read_and_the_operator_proves_itself(pod: Pod) -> None:
    pod.content = b'{"adapters": ["arith@0123456789ab"], "ready": true}'
    assert (await serve()).adapters == ["arith@0123456789ab"]
    assert pod.callers == ["operator"]


@pytest.mark.parametrize(
    ("status", "text", "reason", "final"),
    [
        (422, REFUSED, "BaseMismatch", True),
        (503, REFUSED, "BaseMismatch", False),
        (502, "<html>bad gateway</html>", "RolloutError", False),
        (200, "<html>who is this</html>", "RolloutAnswerUnknown", False),
    ],
)
async def test_a_refusal_keeps_its_reason(
    pod: Pod, status: int, text: str, reason: str, final: bool
) -> None:
    pod.status, pod.content = status, text.encode()
    with pytest.raises(RolloutError) as refused:
        await serve()
    assert (refused.value.problem.reason, refused.value.final) == (reason, final)


async def test_a_pod_that_is_gone_is_unreachable_at_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer, "PORT", 1)
    async with pod_session() as session:
        with pytest.raises(TrainerError) as gone:
            await TrainerClient(session, identity.Signer(KEY)).state(HERE)
    assert isinstance(gone.value, PeerError)
    assert (gone.value.status, gone.value.problem.reason) == (0, "TrainerUnreachable")
    assert "http://127.0.0.1:1/train/state" in gone.value.problem.detail


@pytest.mark.parametrize(
    ("status", "headers", "content", "reason"),
    [
        (302, {"Location": "http://127.0.0.1:1/metadata"}, b"", "RolloutRedirected"),
        (307, {"Location": "/healthz"}, b"", "RolloutRedirected"),
        (200, {"Content-Encoding": "gzip"}, BOMB, "RolloutAnswerCompressed"),
        (200, {}, b" " * (peer.MAX_ANSWER_BYTES + 1), "RolloutAnswerTooLarge"),
    ],
)
async def test_an_answer_that_no_pod_of_ours_gives_is_not_used(
    pod: Pod, status: int, headers: dict[str, str], content: bytes, reason: str
) -> None:
    pod.status, pod.headers, pod.content = status, headers, content
    with pytest.raises(RolloutError) as refused:
        await serve()
    assert (refused.value.status, refused.value.problem.reason) == (502, reason)
    assert "/espalier/v1/serve" in refused.value.problem.detail
    # One call: it is neither followed nor repeated.
    assert len(pod.callers) == 1


@pytest.mark.parametrize("count", [1, 600_000])
async def test_a_faulty_answer_is_told_in_few_words(pod: Pod, count: int) -> None:
    pod.content = b'{"ready":true,"adapters":[' + b"{}," * (count - 1) + b"{}]}"
    with pytest.raises(RolloutError) as refused:
        await serve()
    assert refused.value.problem.reason == "RolloutAnswerUnknown"
    assert len(refused.value.problem.detail) < 600


async def test_a_refusal_becomes_a_reason_and_a_message_of_bounded_length(pod: Pod) -> None:
    pod.status = 409
    pod.content = json.dumps({"detail": "x" * 10**6, "reason": "not a reason"}).encode()
    with pytest.raises(RolloutError) as refused:
        await serve()
    assert refused.value.problem.reason == "RolloutError"
    assert len(refused.value.problem.detail) == peer.MAX_DETAIL_CHARS


def test_a_page_that_is_none_costs_little_more_than_its_text() -> None:
    """A body of 2 MiB that took 570 MiB, one fault of it after the other."""
    keys = b",".join(b'"%x":[]' % number for number in range(180_000))
    body = b'{"commits":[{"metrics":{' + keys + b"}}]}"
    assert len(body) < peer.MAX_ANSWER_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match="faults"):
            read_model(CommitPage, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 160 * 2**20


async def test_a_fenced_client_reads_a_pod_and_does_not_command_it(pod: Pod) -> None:
    def lost() -> None:
        raise LeadershipLostError("another leads")

    pod.content = CommitPage(commits=[]).model_dump_json().encode()
    assignment = Assignment(run="r/uid", term=1, branch="main", base="", base_name="")
    async with pod_session() as session:
        trainer = TrainerClient(session, identity.Signer(KEY), lost)
        with pytest.raises(LeadershipLostError):
            await trainer.assign(HERE, assignment)
        with pytest.raises(LeadershipLostError):
            await RolloutClient(session, identity.Signer(KEY), lost).serve(
                HERE, ServeRequest(adapters=[])
            )
        assert pod.callers == []
        await trainer.commits(HERE, 0, 0)
    assert pod.callers == ["operator"]
