"""TrainingClient over real HTTP: sync and async, order, failures, calls that outlive a process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from aiohttp.test_utils import TestServer
from tests.runner.standin import StandIn

import espalier
from espalier import (
    CallPendingError,
    ConfigurationError,
    DeadlineError,
    EarlierCallFailedError,
    InvalidRequestError,
    NoGradientsError,
    Patience,
    Rollout,
    TrainingClient,
    TrajectoryPayload,
    TrajectorySample,
    UntrainableError,
)
from espalier.api.objective import Correction, Objective
from espalier.api.run.loss import BuiltInLoss
from espalier.client.training_client import BuiltinLoss

QUICK = Patience(deadline=60.0, attempt=60.0, first_delay=0.001, longest_delay=0.01)
SAMPLE = TrajectorySample(prompt_token_ids=[1], output_token_ids=[2], output_logprobs=[-0.5])
INPUTS = [TrajectoryPayload(samples=[SAMPLE], reward=1.0)]


@pytest.fixture
async def server() -> AsyncIterator[tuple[StandIn, str]]:
    gateway = StandIn()
    async with TestServer(gateway.app()) as running:
        yield gateway, str(running.make_url("/"))


def client(url: str, **options: Any) -> TrainingClient:
    return TrainingClient(
        "default/tiny", **{"base_url": url, "token": "t", "patience": QUICK} | options
    )


async def test_a_script_of_hud_runs_with_its_verbs(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    async with client(url) as trainer:
        assert await trainer.head() is None
        done = await trainer.forward_backward(
            INPUTS, loss_fn=BuiltinLoss.PPO, loss_fn_config={"clip_low_threshold": 0.8}
        )
        stepped = await trainer.optim_step(learning_rate=1e-5)
        await trainer.step(INPUTS, learning_rate=1e-5)
        head = await trainer.head()
        await trainer.set_head("tiny-000001")
        listed = await trainer.checkpoints()
        losses = await trainer.available_losses()
    assert (done.num_datums, stepped.step, stepped.promotion) == (1, 1, "Served")
    assert head is not None and head.id == "tiny-000002"
    assert [(c.id, c.is_active) for c in listed] == [("tiny-000001", True), ("tiny-000002", False)]
    assert losses == ["importance_sampling", "ppo"]
    assert gateway.bodies("forward-backward")[0]["loss_fn"] == "ppo"


async def test_the_same_client_works_without_asyncio(server: tuple[StandIn, str]) -> None:
    _, url = server

    def script() -> int:
        with client(url) as trainer:
            trainer.forward_backward(INPUTS).result()
            return trainer.optim_step(learning_rate=1e-3).result().step

    assert await asyncio.to_thread(script) == 1


async def test_calls_are_sent_in_the_order_of_submission(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    gateway.fail("forward-backward", 503, "lose", 503)
    async with client(url) as trainer:
        calls = [trainer.forward_backward(INPUTS), trainer.forward_backward(INPUTS)]
        committed = trainer.optim_step(learning_rate=1e-3)
        assert (await committed).step == 1
        assert all(call.done() for call in calls)
    assert gateway.kinds() == ["forward-backward", "forward-backward", "optim-step"]


async def test_what_was_submitted_before_a_failure_was_seen_is_not_sent(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    gateway.fail("forward-backward", 422)
    async with client(url) as trainer:
        first = trainer.forward_backward(INPUTS)
        second = trainer.forward_backward(INPUTS)
        third = trainer.optim_step(learning_rate=1e-3)
        for skipped in (third, second):
            with pytest.raises(EarlierCallFailedError, match=first.key) as raised:
                await skipped
            assert isinstance(raised.value.__cause__, InvalidRequestError)
        # Nobody has looked at the failure itself yet.
        with pytest.raises(EarlierCallFailedError):
            await trainer.forward_backward(INPUTS)
        with pytest.raises(InvalidRequestError):
            await first
        await trainer.forward_backward(INPUTS)
    assert gateway.kinds() == ["forward-backward"]


async def test_a_step_whose_gradients_failed_raises_that_failure(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    gateway.fail("forward-backward", 422)
    async with client(url) as trainer:
        with pytest.raises(InvalidRequestError):
            await trainer.step(INPUTS, learning_rate=1e-3)
        assert (await trainer.step(INPUTS, learning_rate=1e-3)).step == 1
    assert gateway.kinds() == ["forward-backward", "optim-step"]


async def test_who_gives_up_waiting_gives_up_nothing_else(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    asked = asyncio.Event()
    gateway.hooks["forward-backward"] = asked.set
    gateway.fail("forward-backward", *[503] * 100_000)
    async with client(url) as trainer:
        call = trainer.forward_backward(INPUTS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.01)
        with pytest.raises(CallPendingError, match=call.key):
            await asyncio.to_thread(call.result, 0.01)
        await asked.wait()
        gateway.faults.clear()
        assert (await call).num_datums == 1
        assert call.progress.attempts >= 2
        assert call.progress.reason == "Status503"
    assert gateway.kinds() == ["forward-backward"]


async def test_a_call_in_the_journal_is_answered_to_the_next_process(
    server: tuple[StandIn, str], tmp_path: Path
) -> None:
    gateway, url = server
    gateway.fail("optim-step", *["lose"] * 1000)
    short = Patience(deadline=0.05, attempt=60.0, first_delay=0.001, longest_delay=0.01)
    async with client(url, journal=tmp_path, patience=short) as trainer:
        await trainer.forward_backward(INPUTS)
        with pytest.raises(DeadlineError):
            await trainer.optim_step(learning_rate=1e-3)
    gateway.faults.clear()
    async with client(url, journal=tmp_path) as trainer:
        (ticket,) = trainer.unanswered()
        assert ticket.command == "optim-step"
        assert (await trainer.resume(ticket)).step == 1
        assert trainer.unanswered() == []
    assert gateway.kinds() == ["forward-backward", "optim-step"]


async def test_a_refused_call_is_answered_and_leaves_the_journal(
    server: tuple[StandIn, str], tmp_path: Path
) -> None:
    _, url = server
    async with client(url, journal=tmp_path) as trainer:
        with pytest.raises(NoGradientsError):
            await trainer.optim_step(learning_rate=1e-3)
        assert trainer.unanswered() == []


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with (
        client("http://127.0.0.1:1", journal=tmp_path) as trainer,
        pytest.raises(ConfigurationError, match=r"notes\.json is no ticket"),
    ):
        trainer.unanswered()


async def test_threads_share_a_client_and_no_key(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    with client(url) as trainer:
        work = [
            threading.Thread(target=lambda: trainer.forward_backward(INPUTS).result())
            for _ in range(8)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            await asyncio.to_thread(thread.join)
    assert len(gateway.kinds()) == 8
    assert sorted(int(key.split("/")[1]) for key in gateway.keys) == list(range(1, 9))
    # In the order of their numbers: the trainer refuses a number that was overtaken.
    assert [int(key.split("/")[1]) for key in gateway.keys] == list(range(1, 9))


async def test_a_closed_client_says_so(server: tuple[StandIn, str]) -> None:
    _, url = server
    trainer = client(url)
    trainer.close()
    with pytest.raises(RuntimeError, match="closed"):
        trainer.state()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("ESPALIER_GATEWAY_URL", "ESPALIER_TOKEN", "ESPALIER_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch


async def test_gateway_and_token_come_from_the_environment(
    server: tuple[StandIn, str], bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway, url = server
    with pytest.raises(ConfigurationError, match="ESPALIER_GATEWAY_URL"):
        TrainingClient("tiny")
    bare.setenv("ESPALIER_GATEWAY_URL", url)
    with pytest.raises(ConfigurationError, match="ESPALIER_TOKEN"):
        TrainingClient("tiny")
    (tmp_path / "token").write_text("from-file\n")
    bare.setenv("ESPALIER_TOKEN_FILE", str(tmp_path / "token"))
    async with TrainingClient("default/tiny") as trainer:
        await trainer.state()
    assert gateway.tokens == ["Bearer from-file"]


def untrained(**changes: Any) -> Rollout:
    return Rollout(task_id="t:1", rollout_idx=3, group_id="g", **changes)


@pytest.mark.parametrize(
    ("rollout", "why"),
    [
        (untrained(status="error", error="rollout timed out after 5 s during grading"), "grading"),
        (untrained(), "no reward"),
        (untrained(reward=float("nan")), "reward is nan"),
        (untrained(reward=1.0), "nothing was sampled"),
    ],
)
def test_a_rollout_that_taught_nothing_is_refused_by_name(rollout: Rollout, why: str) -> None:
    with (
        client("http://127.0.0.1:1") as trainer,
        pytest.raises(UntrainableError, match=rf"rollout 3 of task t:1: .*{why}"),
    ):
        trainer.forward_backward([rollout])


def test_the_client_is_found_at_the_top_of_the_package() -> None:
    found: Callable[..., Any] = espalier.TrainingClient
    assert found is TrainingClient
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = espalier.nothing


async def test_a_temperature_goes_with_every_verb_that_takes_log_probs(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server

    def loss(data: Any, logprobs: Any) -> Any:
        return torch.zeros((), requires_grad=True) * 1.0, {}

    async with client(url) as trainer:
        await trainer.forward_backward(INPUTS, temperature=0.7)
        await trainer.step(
            INPUTS,
            learning_rate=1e-5,
            temperature=0.7,
            advantage_scale="GroupStd",
            objective=Objective(aggregation="TokenMean", correction=Correction(mode="TokenMask")),
        )
        await trainer.forward_backward_custom(INPUTS, loss, temperature=0.7)
    sent = [*gateway.bodies("forward-backward"), *gateway.bodies("forward")]
    assert [body["temperature"] for body in sent] == [0.7] * 3
    assert sent[1]["advantage_scale"] == "GroupStd"
    assert (sent[1]["aggregation"], sent[1]["correction"]["mode"]) == ("TokenMean", "TokenMask")


async def test_what_is_sampled_carries_how_it_was_to_the_trainer(
    server: tuple[StandIn, str],
) -> None:
    _, url = server
    chat = [{"role": "user", "content": "3="}]
    async with client(url) as trainer:
        hot, cut = [
            (await trainer.sample(chat, max_tokens=4, temperature=temperature, extra=extra))[0]
            for temperature, extra in ((1.3, {}), (0.7, {"top_p": 0.8}))
        ]
    rollout = Rollout("3", 0, "g", turns=[hot, cut], reward=1.0)
    drawn = [(sample.temperature, sample.shifted_by) for sample in rollout.payload().samples]
    assert drawn == [(1.3, []), (0.7, ["top_p 0.8"])]


def test_the_client_offers_the_losses_of_the_api() -> None:
    assert {str(loss) for loss in BuiltinLoss} == set(get_args(BuiltInLoss))
