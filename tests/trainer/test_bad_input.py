"""What cannot be trained on is refused by name over HTTP; state and log stay as they were."""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from tests.trainer import tiny
from tests.trainer.test_service import ended
from tests.trainer.tiny import Volume

from espalier import identity
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.http.service import SERVER, Service
from espalier.trainer.policy.policy import Policy
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog

PRIVATE = identity.generate_private_key()
KEYS = identity.PublicKeys.of(PRIVATE, PRIVATE)
AUDIENCE = "default/arith/trainer/uid-1"
LIMIT_BYTES = 4 << 20

Client = TestClient[Any, Any]


@pytest.fixture
async def client(volume: Volume, policy: Policy) -> AsyncIterator[Client]:
    async with serving(volume, policy) as made:
        yield made


@asynccontextmanager
async def serving(
    volume: Volume, policy: Policy, model: str = tiny.MODEL, audience: str = AUDIENCE
) -> AsyncIterator[Client]:
    """A trainer of a model, which has its first assignment."""
    service = Service(KEYS, audience, max_body_bytes=LIMIT_BYTES)
    store = CheckpointStore(volume.path, model)

    def make(publish: Any) -> Engine:
        made = Engine(
            TrainingState(
                model=model,
                base=volume.base,
                compute=LocalCompute(policy),
                store=store,
                log=CommandLog(store.model_directory(model), lock_seconds=1.0),
            ),
            publish,
        )
        made.assign(tiny.assignment())
        return made

    server = TestServer(service.app())
    await server.start_server(**SERVER)
    async with TestClient(server) as made:
        await service.start(make)
        yield made
        await ended(service)


def headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {identity.issue(PRIVATE, 'gateway', AUDIENCE, 0)}"}


async def post(client: Client, kind: str, body: str) -> tuple[int, dict[str, Any]]:
    response = await client.post(f"/train/{kind}", data=body, headers=headers())
    return response.status, await response.json()


async def standing(client: Client, volume: Volume) -> tuple[Any, list[Any]]:
    """The state, and every command in the log."""
    state = await (await client.get("/train/state", headers=headers())).json()
    directory = CheckpointStore(volume.path, tiny.MODEL).model_directory(tiny.MODEL)
    with closing(sqlite3.connect(directory / "log.sqlite")) as connection:
        return state, connection.execute("SELECT * FROM commands").fetchall()


def batch(
    text: str = "",
    /,
    first: dict[str, Any] | None = None,
    others: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    """Two good trajectories and a third whose sample is changed; ``@`` stands for ``text``."""
    sample = {"prompt_token_ids": [1, 2], "output_token_ids": [3, 4], "output_logprobs": [-1, -2]}
    good = {"samples": [sample], "reward": 1.0} | (others or {})
    bad = {"samples": [sample | changes], "reward": 0.5} | (first or {})
    return json.dumps({"inputs": [good, good, bad]}).replace('"@"', text)


SAMPLE = "inputs[2].samples[0]"
REFUSED = {
    "no output": (batch(output_token_ids=[], output_logprobs=[]), f"{SAMPLE}.output_token_ids"),
    "no prompt": (batch(prompt_token_ids=[]), f"{SAMPLE}.prompt_token_ids"),
    "log-probs of another length": (batch(output_logprobs=[-1]), f"{SAMPLE}.output_logprobs"),
    "advantages of another length": (batch(advantages=[1.0]), f"{SAMPLE}.advantages"),
    "advantages twice": (
        batch(others={"advantage": 0.0}, first={"advantage": 1.0}, advantages=[1.0, 1.0]),
        f"{SAMPLE}.advantages",
    ),
    "weights that the loss does not read": (batch(weights=[1.0, 1.0]), f"{SAMPLE}.weights"),
    "a token above the vocabulary": (
        batch(output_token_ids=[3, tiny.VOCABULARY]),
        f"{SAMPLE}.output_token_ids",
    ),
    "a token below 0": (batch(prompt_token_ids=[-1, 2]), f"{SAMPLE}.prompt_token_ids"),
    "a token of 40 digits": (batch("9" * 40, prompt_token_ids=["@"]), f"{SAMPLE}.prompt_token_ids"),
    "a fraction for a token": (batch(output_token_ids=[3, 4.5]), f"{SAMPLE}.output_token_ids[1]"),
    "a text for a token": (batch(output_token_ids=[3, "4"]), f"{SAMPLE}.output_token_ids[1]"),
    "a boolean for a token": (batch(output_token_ids=[3, True]), f"{SAMPLE}.output_token_ids[1]"),
    "a boolean for a log-prob": (batch(output_logprobs=[False, -1]), f"{SAMPLE}.output_logprobs"),
    "a sequence over the context": (batch(prompt_token_ids=[1] * 127), f"{SAMPLE}: 127 prompt"),
    "an unknown field": (batch(logprobs=[1.0]), f"{SAMPLE}.logprobs"),
    "a boolean for a reward": (batch(first={"reward": True}), "inputs[2].reward"),
    "a trace id": (json.dumps({"inputs": ["trace-1"]}), "inputs[0]"),
    "no inputs": (json.dumps({"inputs": []}), "inputs"),
    "an unknown loss": (batch()[:-1] + ', "loss_fn": "reinforce"}', "loss_fn"),
    "a key that the loss lacks": (
        batch()[:-1] + ', "loss_fn": "gspo", "loss_fn_config": {"beta": 1}}',
        "loss_fn_config",
    ),
    "a threshold that is no number": (
        batch()[:-1] + ', "loss_fn": "ppo", "loss_fn_config": {"clip_low_threshold": NaN}}',
        "loss_fn_config.clip_low_threshold",
    ),
    "a temperature of 0": (batch()[:-1] + ', "temperature": 0}', "temperature"),
    "half a group": (batch()[:-1] + ', "group_size": 2}', "group_size"),
    "no JSON": ("{", "body"),
} | {
    f"{text} in {name}": (batch(text, first, **changes), f"inputs[2].{field}")
    for text in ("NaN", "Infinity", "-Infinity", "1e999")
    for name, first, changes, field in (
        ("reward", {"reward": "@"}, {}, "reward"),
        ("advantage", {"advantage": "@"}, {}, "advantage"),
        ("log-prob", {}, {"output_logprobs": [-1, "@"]}, "samples[0].output_logprobs[1]"),
        ("advantages", {}, {"advantages": ["@", 1]}, "samples[0].advantages[0]"),
        ("weights", {}, {"weights": [1, "@"]}, "samples[0].weights[1]"),
    )
}


async def test_a_refused_batch_names_its_field_and_changes_nothing(
    client: Client, volume: Volume
) -> None:
    status, _ = await post(client, "forward-backward", tiny.forward_backward().model_dump_json())
    assert status == 200
    before = await standing(client, volume)
    for name, (body, field) in REFUSED.items():
        status, problem = await post(client, "forward-backward", body)
        assert (status, field in problem["detail"]) == (422, True), (name, status, problem)
        assert await standing(client, volume) == before, name


async def test_a_refused_backward_names_its_row_and_changes_nothing(
    client: Client, volume: Volume
) -> None:
    _, forward = await post(client, "forward", batch())
    before = await standing(client, volume)
    good = [[1.0, -1.0]] * 3
    for weights, field in (
        (json.dumps(good[:2]), "weights"),
        (json.dumps([*good[:2], [1.0]]), "weights[2]"),
        ("[[1, -1], [1, NaN], [1, 1]]", "weights[1][1]"),
        ("[[1, -1], [1, 1e999], [1, 1]]", "weights[1][1]"),
        ("[[1, -1], [1, true], [1, 1]]", "weights[1][1]"),
    ):
        body = f'{{"forward_id": "{forward["forward_id"]}", "weights": {weights}}}'
        status, problem = await post(client, "backward", body)
        assert (status, field in problem["detail"]) == (422, True), problem
        assert await standing(client, volume) == before


async def test_a_step_with_values_that_are_not_numbers_names_them_and_is_not_taken(
    client: Client, volume: Volume
) -> None:
    status, _ = await post(client, "forward-backward", batch())
    assert status == 200
    before = await standing(client, volume)
    for text in ("NaN", "Infinity", "1e999"):
        for body, says in (
            (f'{{"learning_rate": {text}}}', "learning_rate"),
            (
                f'{{"learning_rate": 1, "metrics": {{"rollout/reward/mean": {text}}}}}',
                "metrics.rollout/reward/mean",
            ),
            (f'{{"learning_rate": 1, "cursor": {{"seen": [1, {text}]}}}}', "at seen: at 1: not a"),
            (
                f'{{"learning_rate": 1, "rollouts": [{{}}, {{"reward": {text}}}]}}',
                "rollouts[1]: Value error, at reward: not a finite number",
            ),
        ):
            status, problem = await post(client, "optim-step", body)
            assert (status, says in problem["detail"]) == (422, True), (body, problem)
            assert await standing(client, volume) == before
    assert (await post(client, "optim-step", '{"learning_rate": 1e-3}'))[0] == 200


@pytest.mark.parametrize(
    ("said", "field", "remedy"),
    [
        ({"metrics": {"reward/mean": 1.0}}, "metrics.reward/mean", "rollout/reward/mean"),
        ({"metrics": {"eval/x": 1.0}}, "metrics.eval/x", "optim-step's measured"),
        ({"measured": {"arith-000001": {"loss/sum": 1.0}}}, "measured.arith-000001.loss/sum", "in"),
        ({"measured": {"other-000001": {"reward/mean": 1.0}}}, "measured.other-000001", "this"),
        ({"measured": {"base": {"reward/mean": 1.0}}}, "measured.base", "the base has no figures"),
        (
            {"measured": {f"arith-{n:06d}": {"reward/mean": 1.0} for n in range(17)}},
            "measured",
            "at most 16",
        ),
        (
            {"measured": {"arith-000001": {f"eval/{n}": 1.0 for n in range(33)}}},
            "measured.arith-000001",
            "at most 32",
        ),
    ],
)
async def test_a_figure_under_the_wrong_name_is_refused_and_the_step_is_not_taken(
    client: Client, volume: Volume, said: dict[str, Any], field: str, remedy: str
) -> None:
    status, _ = await post(client, "forward-backward", batch())
    assert status == 200
    before = await standing(client, volume)
    status, problem = await post(client, "optim-step", json.dumps({"learning_rate": 1e-3} | said))
    assert (status, problem["detail"].partition(":")[0]) == (422, field)
    assert remedy in problem["remedy"]
    assert await standing(client, volume) == before


async def test_the_last_of_ten_thousand_sequences_is_named_before_anything_runs(
    client: Client, volume: Volume
) -> None:
    sample = {"prompt_token_ids": [1], "output_token_ids": [2], "output_logprobs": [-1]}
    good = {"samples": [sample], "reward": 1.0}
    bad = {"samples": [sample | {"output_token_ids": [999]}], "reward": 1.0}
    before = await standing(client, volume)
    body = json.dumps({"inputs": [good] * 9_999 + [bad]})
    assert len(body) < LIMIT_BYTES
    status, problem = await post(client, "forward-backward", body)
    assert status == 422
    assert "inputs[9999].samples[0].output_token_ids" in problem["detail"]
    assert await standing(client, volume) == before


async def test_a_body_over_the_limit_is_refused_by_its_announced_and_by_its_real_length(
    client: Client, volume: Volume
) -> None:
    before = await standing(client, volume)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(LIMIT_BYTES // 65536 + 1):
            yield b" " * 65536

    for body in (b" " * (LIMIT_BYTES + 1), endless()):
        response = await client.post("/train/forward-backward", data=body, headers=headers())
        problem = await response.json()
        assert (response.status, problem["reason"]) == (413, "BodyTooLarge")
        assert str(LIMIT_BYTES) in problem["detail"]
        assert "several calls" in problem["remedy"]
    assert await standing(client, volume) == before


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("/train/forward-backward", "gateway"),
        ("/traces/job/" + "0" * 32 + "/enter", "gateway"),
        ("/assign", "operator"),
    ],
)
async def test_a_compressed_body_is_refused_and_not_inflated(
    client: Client, volume: Volume, path: str, subject: identity.Subject
) -> None:
    before = await standing(client, volume)
    token = identity.issue(PRIVATE, subject, AUDIENCE, 0)
    body = gzip.compress(b" " * (64 << 20))
    sent = {"Authorization": f"Bearer {token}", "Content-Encoding": "gzip"}
    response = await client.post(path, data=body, headers=sent)
    problem = await response.json()
    assert (response.status, problem["reason"]) == (415, "ContentEncodingNotTaken")
    assert "without Content-Encoding" in problem["remedy"]
    assert await standing(client, volume) == before


NINES = "9" * 5000
OUT_OF_RANGE = str(2**63)


@pytest.mark.parametrize(
    ("lines", "status", "word"),
    [
        (b"Authorization: Bearer \xff", 401, "Bearer"),
        (f"Idempotency-Key: s/{OUT_OF_RANGE}".encode(), 422, "Idempotency-Key"),
        (f"Idempotency-Key: s/{NINES}".encode(), 422, "Idempotency-Key"),
        (b"Idempotency-Key: \xff/1", 422, "Idempotency-Key"),
        (f"Espalier-Term: {OUT_OF_RANGE}".encode(), 422, "Espalier-Term"),
        (f"Espalier-Term: {NINES}".encode(), 422, "Espalier-Term"),
        (b"Espalier-Term: \xff", 422, "Espalier-Term"),
        (b"Espalier-Client: \xff", 422, "Espalier-Client"),
    ],
)
async def test_a_malformed_header_is_named(
    client: Client, volume: Volume, lines: bytes, status: int, word: str
) -> None:
    before = await standing(client, volume)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    token = b"" if b"Authorization" in lines else _line(headers())
    body = batch().encode()
    head = b"POST /train/forward-backward HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n" % len(body)
    writer.write(head + token + lines + b"\r\nConnection: close\r\n\r\n" + body)
    answer = await reader.read()
    writer.close()
    assert int(answer.split()[1]) == status
    assert word in json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]
    assert await standing(client, volume) == before


def _line(headers: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


@pytest.mark.parametrize("depth", [300, 10_000, 1_000_000])
async def test_deep_json_is_refused(client: Client, volume: Volume, depth: int) -> None:
    before = await standing(client, volume)
    deep = "[" * depth + "]" * depth
    for text in (deep, '{"inputs": ' + deep + "}"):
        status, problem = await post(client, "forward-backward", text)
        assert (status, problem["reason"]) in (
            (422, "InvalidRequest"),
            # A million of them are more bytes than the limit of this trainer.
            (413, "BodyTooLarge"),
        )
    report = '{"metadata": ' + '{"a":' * depth + "1" + "}" * depth + "}"
    path = "/traces/" + "0" * 32 + "/exit"
    response = await client.post(path, data=report, headers=headers())
    assert response.status in (422, 413)
    assert await standing(client, volume) == before
