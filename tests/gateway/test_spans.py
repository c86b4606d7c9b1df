"""Traces through a gateway: to a real trainer and from a client's step, and what they tell."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.gateway.conftest import PRIVATE_KEY, Gateway, new_users
from tests.gateway.process import before_a_trainer, started, until
from tests.gateway.test_completions import ASK, Start, answer, serve
from tests.gateway.test_traces import got, rolled_out, take, train, trainer_asked
from tests.gateway.test_traces import served as sampled
from tests.gateway.test_two_gateways import trainer
from tests.gateway.world import digest
from tests.telemetry.collector import SOON, Collector, collector
from tests.trainer import tiny

from espalier.client import GatewayClient
from espalier.gateway.hud import traces
from espalier.telemetry import recorder, spans

GATEWAY, HERE = "espalier-gateway", "here"
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CARRIED = {"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-Id": "mine-7"}
PROMPT = "what nobody else may read"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """What this process records while the test runs; named before the gateway's fixture."""
    monkeypatch.setenv(*SOON)
    with collector() as kept:
        spans.start(kept.environment(), HERE)
        yield kept
        spans.stop()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process sends its spans to a port where nobody ever answers, and its queue is small."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        spans.start({"OTEL_EXPORTER_OTLP_ENDPOINT": url}, HERE)
        yield
        spans.stop()


async def test_a_forward_backward_is_one_trace_from_the_clients_step_to_the_engine(
    apiserver: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*SOON)
    users = new_users(apiserver)
    space, port, own = users.namespace, free_port(), free_port()
    name, environment = before_a_trainer(apiserver, space, port, PRIVATE_KEY)
    environment |= {"ESPALIER_PORT": str(own), "ESPALIER_METRICS_PORT": str(free_port())}
    url = f"http://127.0.0.1:{own}"
    async with AsyncExitStack() as stack:
        kept = stack.enter_context(collector())
        spans.start(kept.environment(), HERE)
        stack.callback(spans.stop)
        await stack.enter_async_context(trainer(tmp_path, name, port))
        log = stack.enter_context((tmp_path / "log").open("wb"))
        process = await stack.enter_async_context(started(environment | kept.environment(), log))
        async with aiohttp.ClientSession() as session:
            await until(session, f"{url}/readyz", '{"unready": ""}')
        async with GatewayClient(url, f"{space}/arith", users.trainer) as client:
            with spans.span("step", {spans.STEP: 1}):
                await client.forward_backward(tiny.forward_backward())
                stepping = asyncio.create_task(client.optim_step(tiny.optim_step()))
            at_trainer = await asyncio.to_thread(kept.named, "POST /train/optim-step")
            # The operator is not here, so its head is moved by hand; until then the answer waits.
            state = await client.state()
            current = {"name": state.checkpoint, "step": 1, "digest": state.digest, "term": 1}
            apiserver.kubectl(
                *("patch", "checkpointhead", "arith", "-n", space, "--subresource=status"),
                *("--type=merge", "-p", json.dumps({"status": {"current": current}})),
            )
            await stepping
        process.terminate()
        # What it has not sent is sent before it ends.
        assert await process.wait() == 0
        engine = await asyncio.to_thread(kept.named, "engine forward-backward")
        above = await asyncio.to_thread(kept.ancestors, engine)
        route = "POST /v1/models/{namespace}/{slug}/train/{command}"
        assert above == [
            (HERE, "engine forward-backward"),
            (HERE, "POST /train/forward-backward"),
            (GATEWAY, "POST"),
            (GATEWAY, route),
            (HERE, "POST"),
            (HERE, "step"),
        ]
        step = await asyncio.to_thread(
            kept.wait, lambda span: span.service == GATEWAY and spans.STEP in span.about
        )
    assert step.trace == at_trainer.trace == engine.trace
    about = {spans.NAMESPACE: space, spans.MODEL: "arith"}
    position = {spans.STEP: 1, spans.CHECKPOINT: f"{tiny.MODEL}-000001"}
    assert (about | position).items() <= step.about.items()
    assert position.items() <= at_trainer.about.items()
    assert step.about[spans.REQUEST_ID] == at_trainer.about[spans.REQUEST_ID]


async def test_a_sample_goes_on_with_its_callers_trace_and_tells_no_prompt_no_key_and_no_error(
    here: Collector, gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answer)
    model = serve(gateway, pod.port)
    gateway.world.head(model, digest("a1"), step=1, checkpoint="arith-000001")
    asked = ASK | {"prompt": PROMPT}
    assert (await gateway.post("/v1/completions", asked, **CARRIED)).status == 200
    # The refusal quotes what it was sent.
    wrong = await gateway.post("/v1/completions", asked | {"model": PROMPT}, **CARRIED)
    assert wrong.status == 404
    assert PROMPT in await wrong.text()
    refused = await asyncio.to_thread(here.wait, lambda span: spans.REASON in span.about)
    sample = await asyncio.to_thread(here.wait, lambda span: spans.CHECKPOINT in span.about)
    sent = await asyncio.to_thread(here.wait, lambda span: span.parent == sample.id)
    for span in (refused, sample):
        assert (span.trace, span.parent) == (TRACE, CALLER)
        assert span.about[spans.REQUEST_ID] == "mine-7"
    assert (sample.about[spans.MODEL], sample.about[spans.CHECKPOINT]) == ("arith", "arith-000001")
    header = pod.requests[0].headers
    assert header["X-Request-Id"] == "mine-7"
    assert header["traceparent"].split("-")[1:3] in [
        [TRACE, span.id] for span in here.spans if span.name == "POST"
    ]
    assert sent.trace == TRACE
    told = json.dumps([span.about for span in here.spans])
    assert PROMPT not in told
    assert gateway.users.trainer not in told


async def test_what_a_trainer_is_handed_later_is_not_of_the_request_that_was_held_first(
    here: Collector, gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "LOOK_SECONDS", 0.01)
    model = await sampled(gateway, upstream)
    await rolled_out(gateway)
    trainer = await upstream(take)
    train(gateway, model, trainer.port)
    async with asyncio.timeout(60):
        while len(got(trainer)) < 5:
            await trainer_asked()
    assert not [request for request in trainer.requests if "traceparent" in request.headers]


async def test_a_collector_that_never_answers_costs_spans_and_no_time(
    silent: None, gateway: Gateway, upstream: Start
) -> None:
    serve(gateway, (await upstream(answer)).port)
    # With one wait for the collector each they would take minutes, and longer than a test may.
    for _ in range(100):
        assert (await gateway.post("/v1/completions", ASK)).status == 200
    # A busy machine has some seconds more; the exporter would wait for 10.
    began = time.monotonic()
    await asyncio.to_thread(spans.stop)
    assert time.monotonic() - began < recorder.STOP_SECONDS + 7.0
