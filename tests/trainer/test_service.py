"""The routes: who may call, exact answers, long-poll, and a real process that is killed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families
from tests.trainer import tiny
from tests.trainer.tiny import Volume

from espalier import identity
from espalier.api.wire.commits import CommitPage
from espalier.api.wire.headers import IDEMPOTENCY_KEY, TERM
from espalier.core.names import audience
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.commands import Answer
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.http.feed import CommitFeed
from espalier.trainer.http.service import Service
from espalier.trainer.http.watchdog import Watchdog
from espalier.trainer.policy.policy import Policy
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog

PRIVATE = identity.generate_private_key()
GATEWAY = identity.generate_private_key()
KEYS = identity.PublicKeys.of(PRIVATE, GATEWAY)
AUDIENCE = audience("default", "arith", "trainer", "uid-1")
STARTED_SECONDS = 120.0

Client = TestClient[Any, Any]


def bearer(
    subject: identity.Subject = "gateway", term: int = 0, name: str = AUDIENCE
) -> dict[str, str]:
    key = PRIVATE if subject == "operator" else GATEWAY
    return {"Authorization": f"Bearer {identity.issue(key, subject, name, term)}"}


def signed_by_the_gateway() -> dict[str, str]:
    """What the gateway would have to show to act as the operator."""
    return {"Authorization": f"Bearer {identity.issue(GATEWAY, 'operator', AUDIENCE)}"}


def meant_for(*pod: str) -> dict[str, str]:
    """The operator's token for another pod: namespace, model, role and uid."""
    return bearer("operator", name=audience(*pod))


async def ended(service: Service) -> None:
    """Ends a service: its log is closed once nothing writes it any more."""
    await service.stop(web.Application())
    await asyncio.to_thread(service._worker.shutdown)
    service.feed.close()
    assert service._engine is not None
    service._engine.state.log.close()


@pytest.fixture
async def client(volume: Volume, policy: Policy) -> AsyncIterator[Client]:
    service = Service(KEYS, AUDIENCE)
    async with TestClient(TestServer(service.app())) as made:
        await service.start(lambda publish: make_engine(volume, policy, publish))
        yield made
        await ended(service)


def make_engine(volume: Volume, policy: Policy, publish: Any) -> Any:
    store = CheckpointStore(volume.path, tiny.MODEL)
    log = CommandLog(store.model_directory(tiny.MODEL), lock_seconds=1.0)
    return Engine(
        TrainingState(
            model=tiny.MODEL, base=volume.base, compute=LocalCompute(policy), store=store, log=log
        ),
        publish,
    )


async def post(
    client: Client,
    path: str,
    body: Any = None,
    subject: identity.Subject = "gateway",
    **headers: str,
) -> tuple[int, dict[str, Any], Any]:
    text = body if isinstance(body, str) else body.model_dump_json() if body is not None else "{}"
    response = await client.post(path, data=text, headers=bearer(subject) | headers)
    return response.status, await response.json(), response.headers


async def assign(client: Client, **changes: Any) -> dict[str, Any]:
    status, body, _ = await post(client, "/assign", tiny.assignment(**changes), "operator")
    assert status == 200
    return body


async def step(client: Client, seed: int = 0) -> dict[str, Any]:
    status, _, _ = await post(client, "/train/forward-backward", tiny.forward_backward(seed))
    assert status == 200
    status, body, _ = await post(client, "/train/optim-step", tiny.optim_step())
    assert status == 200
    return body


async def test_answers_carry_exactly_the_fields_that_hud_clients_take(client: Client) -> None:
    await assign(client)
    inputs = tiny.forward_backward()
    _, body, _ = await post(client, "/train/forward-backward", inputs)
    assert set(body) == {"metrics", "num_datums"}
    assert body["num_datums"] == 6
    assert "loss:sum" in body["metrics"]
    assert all(re.fullmatch(r"[a-z0-9_]+:(sum|mean|max)", name) for name in body["metrics"])
    hud = {"inputs": inputs.model_dump(exclude_none=True)["inputs"], "group_size": 3}
    _, forward, _ = await post(client, "/train/forward", json.dumps(hud))
    assert set(forward) == {"forward_id", "data"}
    assert set(forward["data"][0]) == {
        "reward", "traj_idx", "group_idx", "logprobs", "sampling_logprobs", "mask",
    }  # fmt: skip
    weights = [[0.5] * len(datum["logprobs"]) for datum in forward["data"]]
    sent = {"forward_id": forward["forward_id"], "weights": weights, "metrics": {"mine": 1.0}}
    _, backward, _ = await post(client, "/train/backward", json.dumps(sent))
    assert set(backward) == {"metrics", "num_datums"}
    assert backward["metrics"]["mine"] == 1.0
    _, body, headers = await post(client, "/train/optim-step", json.dumps({"learning_rate": 1e-3}))
    assert set(body) == {"step", "checkpoint_id", "sampler_path", "state_path", "model"}
    assert headers["Espalier-Checkpoint-Digest"].startswith("sha256:")
    response = await client.get("/train/losses", headers=bearer())
    assert await response.json() == {
        "losses": ["importance_sampling", "ppo", "cispo", "dro", "gspo", "cross_entropy"]
    }


@pytest.mark.parametrize(
    ("credentials", "path", "status"),
    # Made in the test: a token lives for two minutes, and this table is read at collection.
    [
        (dict, "/train/state", 401),
        (lambda: {"Authorization": "Bearer x"}, "/train/state", 401),
        (lambda: meant_for("default", "other", "trainer", "uid-1"), "/train/state", 401),
        (lambda: meant_for("another", "arith", "trainer", "uid-1"), "/train/state", 401),
        # What a rollout of the model was shown, and what the trainer's pod before this one was.
        (lambda: meant_for("default", "arith", "rollout", "uid-1"), "/assign", 401),
        (lambda: meant_for("default", "arith", "trainer", "uid-2"), "/assign", 401),
        (signed_by_the_gateway, "/assign", 401),
        (lambda: {"Authorization": "Bearer \xff"}, "/train/state", 401),
        (lambda: bearer("gateway"), "/commits", 403),
        (lambda: bearer("gateway"), "/assign", 403),
        (lambda: bearer("gateway"), "/usage", 403),
        (lambda: bearer("operator"), "/commits", 200),
        (lambda: bearer("operator"), "/train/losses", 200),
        (dict, "/healthz", 200),
        (dict, "/readyz", 200),
        (bearer, "/nowhere", 404),
    ],
)
async def test_who_may_call_what(
    client: Client, credentials: Callable[[], dict[str, str]], path: str, status: int
) -> None:
    method = "POST" if path == "/assign" else "GET"
    response = await client.request(method, path, headers=credentials())
    assert response.status == status
    if status >= 400:
        assert set(await response.json()) == {"detail", "reason", "remedy"}


async def test_what_was_trained_is_told_to_whoever_scrapes_and_to_nobody_else(
    client: Client,
) -> None:
    scraper = {"Authorization": f"Bearer {identity.issue_scrape(PRIVATE)}"}

    async def series() -> dict[str, float]:
        answer = await client.get("/metrics", headers=scraper)
        assert answer.status == 200
        found = text_string_to_metric_families(await answer.text())
        return {
            f"{one.name}{one.labels or ''}": one.value for family in found for one in family.samples
        }

    await assign(client)
    before = await series()
    await step(client)
    status, refused, _ = await post(client, "/train/optim-step", tiny.optim_step())
    after = await series()
    added = {name: value - before.get(name, 0) for name, value in after.items()}
    assert (status, refused["reason"]) == (409, "NoGradients")
    assert added["espalier_trainer_steps_total"] == 1
    assert added["espalier_trainer_refusals_total{'reason': 'NoGradients'}"] == 1
    assert added["espalier_trainer_tokens_total"] > 0
    for phase in ("gradients", "optimizer", "commit", "install"):
        assert added[f"espalier_trainer_phase_duration_seconds_sum{{'phase': '{phase}'}}"] > 0
    assert after["espalier_trainer_queue_length"] == 0
    assert after["espalier_trainer_gradient_norm"] > 0
    assert after["process_resident_memory_bytes"] > 0

    forged = {"Authorization": f"Bearer {identity.issue_scrape(GATEWAY)}"}
    for headers in ({}, forged, bearer("operator"), bearer("gateway")):
        assert (await client.get("/metrics", headers=headers)).status == 401
    for path in ("/train/state", "/commits", "/usage"):
        assert (await client.get(path, headers=scraper)).status == 401


async def test_until_the_base_is_loaded_nothing_but_health_answers() -> None:
    service = Service(KEYS, AUDIENCE)
    async with TestClient(TestServer(service.app())) as client:
        assert (await client.get("/healthz")).status == 200
        response = await client.get("/readyz")
        assert (response.status, (await response.json())["reason"]) == (503, "Loading")
        status, body, _ = await post(client, "/train/zero-grad")
        assert (status, body["reason"]) == (503, "Loading")


async def test_health_names_a_command_that_is_stuck(
    volume: Volume, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    watchdog = Watchdog(300.0, clock=lambda: now[0], cpu=lambda _thread: 1.0)
    service = Service(KEYS, AUDIENCE, watchdog=watchdog)
    release, begun = threading.Event(), threading.Event()
    async with TestClient(TestServer(service.app())) as client:
        await service.start(lambda publish: make_engine(volume, policy, publish))
        await assign(client)

        def blocked(_self: Engine, *_: object) -> Answer:
            begun.set()
            assert release.wait(60)
            return Answer(200, "{}")

        monkeypatch.setattr(Engine, "execute", blocked)
        sent = asyncio.create_task(post(client, "/train/zero-grad"))
        assert await asyncio.to_thread(begun.wait, 60)
        assert (await client.get("/healthz")).status == 200
        now[0] += 301.0
        response = await client.get("/healthz")
        assert (response.status, (await response.json())["reason"]) == (503, "EngineStuck")
        release.set()
        assert (await sent)[0] == 200
        assert (await client.get("/healthz")).status == 200
        await ended(service)


async def test_readiness_shows_a_fault_of_the_volume_and_stays_ready(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await assign(client)
    ready = await client.get("/readyz")
    assert await ready.text() == "ok"

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("espalier.trainer.volume.log_bodies.write_file", fails)
        status, body, _ = await post(
            client, "/train/forward-backward", tiny.forward_backward(), **{"Idempotency-Key": "a/1"}
        )
        assert (status, body["reason"]) == (507, "VolumeFull")
    ready = await client.get("/readyz")
    assert (ready.status, (await ready.text()).split(":")[0]) == (200, "ok\nVolumeFull")
    status, _, _ = await post(
        client, "/train/forward-backward", tiny.forward_backward(), **{"Idempotency-Key": "a/1"}
    )
    assert status == 200
    assert await (await client.get("/readyz")).text() == "ok"


async def test_train_routes_wait_for_the_assignment(client: Client) -> None:
    status, body, headers = await post(client, "/train/forward-backward", tiny.forward_backward())
    assert (status, body["reason"]) == (503, "AwaitingAssignment")
    assert "Retry-After" in headers
    response = await client.get("/train/state", headers=bearer())
    assert (response.status, (await response.json())["reason"]) == (503, "AwaitingAssignment")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("forward-backward", "{}", "inputs"),
        ("forward-backward", "not json", "body"),
        ("forward-backward", '{"inputs": [], "group_size": 0}', ""),
        (
            "forward-backward",
            '{"inputs": [{"samples": [{"output_token_ids": ["x"]}], "reward": 1}]}',
            "inputs[0].samples[0].output_token_ids[0]",
        ),
        ("optim-step", '{"learning_rate": 0}', "learning_rate"),
        ("optim-step", '{"learning_rate": 1, "momentum": 1}', "momentum"),
        ("backward", '{"forward_id": "f"}', "weights"),
    ],
)
async def test_a_malformed_body_is_refused_by_field(
    client: Client, path: str, body: str, field: str
) -> None:
    await assign(client)
    status, problem, _ = await post(client, f"/train/{path}", body)
    assert (status, problem["reason"]) == (422, "InvalidRequest")
    assert problem["detail"].startswith(field)


async def test_the_operator_reads_how_long_no_client_has_called(client: Client) -> None:
    async def quiet() -> float:
        answer = await client.get("/usage", headers=bearer("operator"))
        return float((await answer.json())["quiet_seconds"])

    async def quiet_after_a_call() -> float:
        assert (await client.get("/train/state", headers=bearer())).status == 200
        return await quiet()

    await assign(client)
    # A call ends a moment after its answer.
    while (first := await quiet()) < 0.2:
        pass
    # The operator's own questions are no calls.
    assert await quiet() >= first
    # On a busy machine a question takes long itself.
    assert min([await quiet_after_a_call() for _ in range(10)]) < first


async def test_a_key_is_answered_once_and_for_all(client: Client) -> None:
    await assign(client)
    body = tiny.forward_backward()
    key = {IDEMPOTENCY_KEY: "session/1"}
    answers = await asyncio.gather(
        *(post(client, "/train/forward-backward", body, **key) for _ in range(3))
    )
    assert len({json.dumps(answer) for _, answer, _ in answers}) == 1
    state = await (await client.get("/train/state", headers=bearer())).json()
    assert state["pending"] == 1
    status, problem, _ = await post(
        client, "/train/forward-backward", body, **{IDEMPOTENCY_KEY: "no-number"}
    )
    assert (status, problem["reason"]) == (422, "InvalidRequest")


async def test_the_term_comes_from_the_header_or_else_from_the_token(client: Client) -> None:
    await assign(client, term=2)
    cases = [
        (bearer(term=2), 200),
        (bearer(term=1), 409),
        (bearer(term=0), 200),
        (bearer(term=1) | {TERM: "2"}, 200),
        (bearer(term=2) | {TERM: "1"}, 409),
        (bearer() | {TERM: "two"}, 422),
    ]
    for headers, expected in cases:
        response = await client.post("/train/zero-grad", headers=headers)
        assert response.status == expected, headers


async def commits(client: Client, after: int, wait: float = 0) -> CommitPage:
    query = {"after": str(after), "wait": str(wait)}
    response = await client.get("/commits", params=query, headers=bearer("operator"))
    assert response.status == 200
    return CommitPage.model_validate_json(await response.text())


async def test_commits_are_resumable_over_the_whole_history(client: Client) -> None:
    await assign(client)
    for seed in range(3):
        await step(client, seed)
    page = await commits(client, 0)
    assert [commit.index for commit in page.commits] == [1, 2, 3]
    assert [commit.parent for commit in page.commits[1:]] == [c.digest for c in page.commits[:2]]
    assert [commit.index for commit in (await commits(client, 2)).commits] == [3]
    assert (await commits(client, 3)).commits == []


async def test_a_waiting_poll_is_answered_by_the_next_commit(client: Client) -> None:
    await assign(client)
    waiting = asyncio.create_task(commits(client, 0, wait=30))
    await step(client)
    page = await asyncio.wait_for(waiting, STARTED_SECONDS)
    assert [commit.name for commit in page.commits] == ["arith-000001"]


async def test_a_shutdown_answers_the_waiting_polls_and_later_ones() -> None:
    feed = CommitFeed(asyncio.get_running_loop())
    waiting = asyncio.create_task(feed.page(0, wait_seconds=3600))
    await asyncio.sleep(0)
    feed.close()
    assert (await waiting).commits == []
    assert (await feed.page(0, wait_seconds=3600)).commits == []


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=0.5", "wait=nan"])
async def test_a_poll_with_a_bad_number_is_refused(client: Client, query: str) -> None:
    response = await client.get(f"/commits?{query}", headers=bearer("operator"))
    assert response.status == 422


# --- the process ----------------------------------------------------------------------------------


def environment(volume: Volume, tmp_path: Path, **changes: str) -> dict[str, str]:
    (tmp_path / "termination-log").touch()
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ},
        "OMP_NUM_THREADS": "1",
        "ESPALIER_MODEL": tiny.MODEL,
        "ESPALIER_NAMESPACE": "default",
        "ESPALIER_POD_UID": "uid-1",
        "ESPALIER_VOLUME": str(volume.path),
        "ESPALIER_BASE": volume.base,
        "ESPALIER_PUBLIC_KEYS": KEYS.text(),
        "ESPALIER_DTYPE": "float32",
        "ESPALIER_ADAPTER": tiny.ADAPTER.model_dump_json(by_alias=True),
        "ESPALIER_TERMINATION_LOG": str(tmp_path / "termination-log"),
    } | changes


async def spawn(settings: dict[str, str]) -> tuple[asyncio.subprocess.Process, str]:
    """A trainer on a port of its own, once it is ready; the second value is its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "espalier.trainer", "--host", "127.0.0.1", "--port", "0",
        env=settings, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    url = ""
    async with asyncio.timeout(STARTED_SECONDS):
        while line := (await process.stderr.readline()).decode():
            if found := re.search(r"'127\.0\.0\.1', (\d+)", line):
                url = f"http://127.0.0.1:{found[1]}"
            if '"message": "ready"' in line:
                return process, url
    raise AssertionError(f"the trainer ended with {await process.wait()} before it was ready")


async def test_a_killed_trainer_resumes_where_it_had_acknowledged(
    volume: Volume, tmp_path: Path
) -> None:
    settings = environment(volume, tmp_path)
    process, url = await spawn(settings)
    async with aiohttp.ClientSession() as session:

        async def call(path: str, body: Any, subject: identity.Subject = "gateway") -> Any:
            data = body.model_dump_json()
            async with session.post(url + path, data=data, headers=bearer(subject)) as response:
                assert response.status == 200, await response.text()
                return await response.json()

        await call("/assign", tiny.assignment(), "operator")
        await call("/train/forward-backward", tiny.forward_backward(0))
        await call("/train/optim-step", tiny.optim_step(cursor={"next": 8}))
        await call("/train/forward-backward", tiny.forward_backward(1))
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        process, url = await spawn(settings)
        async with session.get(url + "/train/state", headers=bearer()) as response:
            state = await response.json()
        assert (state["step"], state["run_step"], state["pending"]) == (1, 1, 1)
        assert state["cursor"] == {"next": 8}
        assert (await call("/train/optim-step", tiny.optim_step()))["step"] == 2
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), STARTED_SECONDS) == 0


async def test_a_users_mistake_ends_the_process_with_64_and_a_problem(
    volume: Volume, tmp_path: Path
) -> None:
    settings = environment(volume, tmp_path, ESPALIER_BASE="sha256:" + "0" * 64)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "espalier.trainer", "--host", "127.0.0.1", "--port", "0",
        env=settings, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await asyncio.wait_for(process.wait(), STARTED_SECONDS) == 64
    problem = json.loads((tmp_path / "termination-log").read_text())
    assert problem["reason"] == "BaseUnreadable"
    assert problem["remedy"]
