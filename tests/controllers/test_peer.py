"""What a call of a pod gives: its answer, its refusal, or why there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from espalier import identity
from espalier.api.wire import Served, ServeRequest
from espalier.controllers import peer
from espalier.controllers.peer import Peer, PeerError
from espalier.controllers.rollout_client import RolloutClient, RolloutError
from espalier.controllers.trainer_client import TrainerClient, TrainerError
from espalier.core.names import audience

KEY = identity.generate_private_key()
HERE = Peer("team", "arith", "127.0.0.1", "rollout", "uid-1")
REFUSED = '{"detail": "another base", "reason": "BaseMismatch", "remedy": "fork"}'


class Pod:
    """Answers every call in one way; keeps who called."""

    def __init__(self) -> None:
        self.status, self.text = 200, ""
        self.callers: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        given = request.headers["Authorization"]
        name = audience("team", "arith", "rollout", "uid-1")
        claims = identity.verify(identity.PublicKeys.of(KEY, KEY), given, name)
        self.callers.append(claims.subject)
        return web.Response(status=self.status, text=self.text)


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
    async with aiohttp.ClientSession() as session:
        return await RolloutClient(session, KEY).serve(HERE, ServeRequest(adapters=[]))


async def test_an_answer_is_read_and_the_operator_proves_itself(pod: Pod) -> None:
    pod.text = '{"adapters": ["arith@0123456789ab"], "ready": true}'
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
    pod.status, pod.text = status, text
    with pytest.raises(RolloutError) as refused:
        await serve()
    assert (refused.value.problem.reason, refused.value.final) == (reason, final)


async def test_a_pod_that_is_gone_is_unreachable_at_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer, "PORT", 1)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TrainerError) as gone:
            await TrainerClient(session, KEY).state(HERE)
    assert isinstance(gone.value, PeerError)
    assert (gone.value.status, gone.value.problem.reason) == (0, "TrainerUnreachable")
    assert "http://127.0.0.1:1/train/state" in gone.value.problem.detail
