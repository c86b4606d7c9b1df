"""The client against a gateway over real HTTP: keys, retries, deadlines, errors."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.runner.standin import StandIn, problem

from espalier.api.wire.gradients import BackwardRequest, ForwardBackwardRequest, ForwardRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.client import (
    CutOffError,
    DeadlineError,
    ForbiddenError,
    GatewayClient,
    HeadPinnedError,
    InvalidRequestError,
    KeyReusedError,
    MalformedAnswerError,
    NoActiveRunError,
    NoGradientsError,
    NotFoundError,
    Patience,
    RefusedError,
    StaleTermError,
    Token,
    UnauthorizedError,
    json_http,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

QUICK = Patience(deadline=60.0, attempt=60.0, first_delay=0.001, longest_delay=0.01)
# Gives up after a refusal, never because the machine is busy.
SHORT = Patience(deadline=0.05, attempt=60.0, first_delay=0.001, longest_delay=0.01)

SAMPLE = TrajectorySample(prompt_token_ids=[1], output_token_ids=[2], output_logprobs=[-0.5])
INPUTS = [TrajectoryPayload(samples=[SAMPLE], reward=1.0)]
STEP = OptimStepRequest(learning_rate=1e-3)


@pytest.fixture
async def server() -> AsyncIterator[tuple[StandIn, str]]:
    gateway = StandIn()
    async with TestServer(gateway.app()) as running:
        yield gateway, str(running.make_url("/"))


def client(url: str, token: Token = "secret", patience: Patience = QUICK) -> GatewayClient:
    return GatewayClient(url, "default/tiny", token, patience=patience)


async def test_a_step_is_gradients_and_then_an_optimizer_step(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    async with client(url) as trainer:
        done = await trainer.forward_backward(ForwardBackwardRequest(inputs=INPUTS))
        committed = await trainer.optim_step(STEP)
        state = await trainer.state()
    assert done.num_datums == 1
    assert committed.checkpoint_id == "tiny-000001"
    assert committed.promotion == "Served"
    assert (state.run_step, state.checkpoint, state.pending) == (1, "tiny-000001", 0)
    assert gateway.kinds() == ["forward-backward", "optim-step"]


async def test_every_command_of_the_protocol_can_be_sent(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    async with client(url) as trainer:
        forward = await trainer.forward(ForwardRequest(inputs=INPUTS))
        await trainer.backward(BackwardRequest(forward_id=forward.forward_id, weights=[[1.0]]))
        assert (await trainer.zero_grad()).pending == 0
        assert await trainer.losses() == ["importance_sampling", "ppo"]
    assert gateway.kinds() == ["forward", "backward", "zero-grad"]


@pytest.mark.parametrize("fault", [429, 502, 503, 504, 507, "drop"])
async def test_not_now_is_retried_with_the_same_key(
    server: tuple[StandIn, str], fault: int | str
) -> None:
    gateway, url = server
    gateway.fail("forward-backward", fault, fault)
    async with client(url) as trainer:
        await trainer.forward_backward(ForwardBackwardRequest(inputs=INPUTS))
    assert gateway.kinds() == ["forward-backward"]


async def test_a_lost_answer_is_fetched_and_the_command_not_applied_twice(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    gateway.fail("forward-backward", "lose")
    gateway.fail("optim-step", "lose", "lose")
    async with client(url) as trainer:
        await trainer.forward_backward(ForwardBackwardRequest(inputs=INPUTS))
        committed = await trainer.optim_step(STEP)
    assert committed.step == 1
    assert gateway.kinds() == ["forward-backward", "optim-step"]
    first, second = gateway.keys[0], gateway.keys[2]
    assert gateway.keys == [first, first, second, second, second]
    assert first.split("/")[0] == second.split("/")[0]
    assert [key.split("/")[1] for key in (first, second)] == ["1", "2"]


async def test_two_clients_never_share_a_key(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    for _ in range(2):
        async with client(url) as trainer:
            await trainer.forward_backward(ForwardBackwardRequest(inputs=INPUTS))
    assert len(set(gateway.keys)) == 2


async def test_the_deadline_names_what_it_waited_for_last(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    gateway.fail("state", *[503] * 1000)
    async with client(url, patience=SHORT) as trainer:
        with pytest.raises(DeadlineError, match=r"state gave up after .* Status503") as raised:
            await trainer.state()
    assert raised.value.reason == "Status503"


async def test_a_gateway_that_is_not_there_is_named() -> None:
    async with client("http://127.0.0.1:1", patience=SHORT) as trainer:
        with pytest.raises(DeadlineError) as raised:
            await trainer.state()
    assert raised.value.reason == "GatewayUnreachable"


async def test_a_longer_retry_after_than_the_deadline_ends_the_call(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    gateway.retry_after = "20"
    gateway.fail("state", 429)
    async with client(url, patience=SHORT) as trainer:
        with pytest.raises(DeadlineError, match="Status429"):
            await trainer.state()


@pytest.mark.parametrize(
    ("status", "headers", "body", "spoke"),
    [
        (504, {"Server": "nginx"}, "<html>504 Gateway Time-out</html>", "the gateway (nginx)"),
        (524, {"Server": "cloudflare"}, "<html>a timeout occurred</html>", "(cloudflare)"),
        (504, {}, '{"error": {"message": "x", "code": "RolloutTimeout"}}', "(RolloutTimeout)"),
    ],
)
async def test_a_completion_that_is_cut_off_again_and_again_is_given_up_with_who_did_it(
    status: int, headers: dict[str, str], body: str, spoke: str
) -> None:
    seen = []

    async def cut(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=status, text=body, headers=headers)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", cut)
    async with TestServer(app) as running, client(str(running.make_url("/"))) as trainer:
        with pytest.raises(CutOffError) as raised:
            await trainer.sample([{"role": "user", "content": "1"}], max_tokens=4)
    assert len(seen) == 3
    said = str(raised.value)
    assert "POST /v1/chat/completions was sent 3 times and computed each time" in said
    assert spoke in said
    assert "proxy-read-timeout" in said


async def test_a_completion_that_was_cut_off_once_is_sent_again(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    gateway.fail("chat", 504, 503, 503, 504)
    async with client(url) as trainer:
        assert await trainer.sample([{"role": "user", "content": "1="}], max_tokens=4)


async def test_a_training_command_is_sent_until_its_answer_comes_because_it_is_applied_once(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    gateway.fail("state", *[504] * 8)
    async with client(url) as trainer:
        assert (await trainer.state()).run_step == 0


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (400, "PromptTooLong", InvalidRequestError),
        (401, "Unauthenticated", UnauthorizedError),
        (403, "Forbidden", ForbiddenError),
        (404, "ModelNotFound", NotFoundError),
        (409, "StaleTerm", StaleTermError),
        (409, "HeadPinned", HeadPinnedError),
        (409, "NoActiveRun", NoActiveRunError),
        (409, "NoGradients", NoGradientsError),
        (409, "SomethingElse", RefusedError),
        (413, "BodyTooLarge", InvalidRequestError),
        (422, "KeyReused", KeyReusedError),
        (422, "UnknownLoss", InvalidRequestError),
        (500, "InternalError", RefusedError),
    ],
)
async def test_a_refusal_becomes_its_exception_and_is_not_retried(
    status: int, reason: str, expected: type[RefusedError]
) -> None:
    seen = []

    async def refuse(request: web.Request) -> web.Response:
        seen.append(request.path)
        return problem(status, reason)

    app = web.Application()
    app.router.add_get("/v1/models/default/tiny/train/state", refuse)
    async with TestServer(app) as running, client(str(running.make_url("/"))) as trainer:
        with pytest.raises(expected) as raised:
            await trainer.state()
    assert type(raised.value) is expected
    assert raised.value.problem.reason == reason
    assert str(raised.value) == f"{status} {reason}: {reason} happened. Mend it"
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("body", "reason", "detail"),
    [
        (
            '{"error": {"message": "too long", "code": "PromptTooLong"}}',
            "PromptTooLong",
            "too long",
        ),
        ('{"error": {"message": "bad", "code": 400}}', "InvalidRequest", "bad"),
        ("<html>bad gateway</html>", "Http400", "<html>bad gateway</html>"),
        ("", "Http400", "the answer has no body"),
    ],
)
async def test_errors_of_other_forms_keep_what_they_say(
    body: str, reason: str, detail: str
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=400, text=body)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", refuse)
    async with TestServer(app) as running, client(str(running.make_url("/"))) as trainer:
        with pytest.raises(InvalidRequestError) as raised:
            await trainer.sample([{"role": "user", "content": "7="}], max_tokens=1)
    assert (raised.value.problem.reason, raised.value.problem.detail) == (reason, detail)


async def test_the_term_is_sent_and_another_one_refused(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    gateway.term = 2
    async with client(url) as trainer:
        await trainer.forward_backward(ForwardBackwardRequest(inputs=INPUTS), term=2)
        with pytest.raises(StaleTermError):
            await trainer.optim_step(STEP, term=1)
        # Without a term the caller takes whatever is live.
        await trainer.optim_step(STEP)


async def test_a_token_file_is_read_for_every_request(
    server: tuple[StandIn, str], tmp_path: Path
) -> None:
    gateway, url = server
    token = tmp_path / "token"
    token.write_text("first\n")
    async with client(url, token) as trainer:
        await trainer.state()
        token.write_text("second\n")
        await trainer.state()
    assert gateway.tokens == ["Bearer first", "Bearer second"]


async def test_completions_come_in_order_with_tokens_and_logprobs(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        completions = await trainer.sample(
            [{"role": "user", "content": "7="}], checkpoint="tiny-000004", count=2, max_tokens=4
        )
    assert [completion.text for completion in completions] == ["7", "none"]
    assert completions[0].prompt_token_ids == tuple(b"7=")
    assert completions[0].token_ids == (*b"7", 0)
    assert completions[0].logprobs == (-0.5, -0.5)
    assert not completions[0].truncated
    assert gateway.samples[0]["model"] == "default/tiny@tiny-000004"


async def test_without_a_checkpoint_the_head_is_sampled(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    async with client(url) as trainer:
        await trainer.sample([{"role": "user", "content": "7="}], max_tokens=4)
    assert gateway.samples[0]["model"] == "default/tiny"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"message": {"content": "7"}}, "lacks token_ids"),
        (
            {
                "message": {"content": "7"},
                "token_ids": [1, 2],
                "prompt_token_ids": [0],
                "logprobs": {"content": [{"logprob": -1.0}]},
            },
            "2 tokens came with 1 log-probs",
        ),
        (None, "0 completions came, 1 were asked"),
    ],
)
async def test_a_completion_that_cannot_be_trained_on_is_refused(
    choice: dict[str, object] | None, message: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"choices": [choice] if choice else []})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as running, client(str(running.make_url("/"))) as trainer:
        with pytest.raises(MalformedAnswerError, match=message):
            await trainer.sample([{"role": "user", "content": "7="}], max_tokens=1)


async def stand_in(answer: Handler) -> AsyncIterator[str]:
    """The URL of a server that gives one answer to everything."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as running:
        yield str(running.make_url("/"))


BOMB = gzip.compress(b" " * (64 * 2**20))


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 2**20)


async def bomb(request: web.Request) -> web.Response:
    return web.Response(body=BOMB, headers={"Content-Encoding": "gzip"})


async def deep(request: web.Request) -> web.Response:
    return web.Response(body=b"[" * 100_000 + b"]" * 100_000)


async def deep_refusal(request: web.Request) -> web.Response:
    return web.Response(status=400, body=b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (endless, MalformedAnswerError, "is over 1 MiB"),
        (bomb, MalformedAnswerError, "Content-Encoding 'gzip'"),
        (deep, MalformedAnswerError, "is not a TrainerState"),
        (deep_refusal, InvalidRequestError, "400 Http400"),
    ],
)
async def test_an_answer_that_no_gateway_gives_is_not_held(
    answer: Handler, error: type[Exception], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_http, "MAX_ANSWER_BYTES", 2**20)
    async for url in stand_in(answer):
        async with client(url) as trainer:
            tracemalloc.start()
            try:
                with pytest.raises(error, match=sentence):
                    await trainer.state()
                assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
            finally:
                tracemalloc.stop()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    paths: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async for url in stand_in(redirect):
        async with client(url) as trainer:
            with pytest.raises(MalformedAnswerError, match=r"to '/elsewhere'.*URL of the gateway"):
                await trainer.optim_step(STEP)
    assert paths == ["/v1/models/default/tiny/train/optim-step"]


async def test_a_proxy_of_the_environment_is_used_and_a_password_of_netrc_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []

    async def forward(request: web.Request) -> web.Response:
        asked.append((request.headers["Host"], request.headers["Authorization"]))
        return web.json_response({"losses": ["grpo"]})

    netrc = tmp_path / "netrc"
    netrc.write_text("machine gateway.example login ann password x")
    monkeypatch.setenv("NETRC", str(netrc))
    async for url in stand_in(forward):
        monkeypatch.setenv("http_proxy", url)
        async with client("http://gateway.example") as trainer:
            assert await trainer.losses() == ["grpo"]
    assert asked == [("gateway.example", "Bearer secret")]


@pytest.mark.parametrize(
    ("url", "excepted", "proxy"),
    [
        ("https://gateway.example/x", "", "http://proxy.example:3128"),
        ("https://gateway.example/x", "other.example,.example", None),
        ("http://gateway.example", "", None),
        ("https://localhost:8000", "", None),
        ("https://127.0.0.2:8000", "", None),
        ("https://[::1]:8000", "", None),
    ],
)
def test_what_is_near_or_excepted_needs_no_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, excepted: str, proxy: str | None
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", excepted)
    assert json_http.proxy_for(url) == proxy
