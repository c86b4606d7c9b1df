"""The loop with a real trainer: a tiny model, real gradients, real checkpoints on a volume."""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.runner.around import surroundings
from tests.runner.standin import UID, spec
from tests.telemetry.collector import SOON, collector
from tests.trainer import tiny

from espalier import identity
from espalier.api.wire.declared import Declared
from espalier.api.wire.headers import DECLARED, IDEMPOTENCY_KEY, TERM
from espalier.client import GatewayClient, Patience, RefusedError
from espalier.core.checkpoints.commits import run_identity
from espalier.runner.custom_loss.declared_loss import open_loss
from espalier.runner.journal import Journal
from espalier.runner.loop import Loop
from espalier.runner.open_rewards import open_rewards
from espalier.runner.open_taskset import open_taskset
from espalier.runner.waiting import Waiting
from espalier.telemetry import spans
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.http.service import Service
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog

PRIVATE = identity.generate_private_key()
KEYS = identity.PublicKeys.of(PRIVATE, PRIVATE)
AUDIENCE = f"default/{tiny.MODEL}/trainer/uid-1"


class Passage:
    """Passes train routes to the trainer and samples digits, each with probability 1/10."""

    def __init__(self, trainer: str, session: aiohttp.ClientSession) -> None:
        self.spec = spec()
        self.samples: list[str] = []
        # The headers of samples and commands that say which trace they are of.
        self.traces: list[str] = []
        # What the model says to a prompt, in place of a digit.
        self.says: Callable[[str, int], str] | None = None
        # The command that is refused once, after as many of it went through.
        self.refuse_next = ""
        self.refuse_after = 0
        # What the run binds its client to.
        self.declared: Declared | None = None
        self._trainer = trainer
        self._session = session
        self._random = random.Random(0)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/runs/default/run", self._run)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_route("*", "/v1/models/default/tiny/train/{command}", self._train)
        return app

    async def _run(self, request: web.Request) -> web.Response:
        held = {"term": 1, "suspended": False, "paused": False}
        return web.json_response({"uid": UID, "model": "tiny", "spec": self.spec, **held})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.samples.append(body["model"])
        self.traces.append(request.headers.get("traceparent", ""))
        prompt = list(body["messages"][-1]["content"].encode())
        choices = []
        for index in range(body["n"]):
            digit = self._random.choice("0123456789") if index else chr(prompt[0])
            text = digit if self.says is None else self.says(bytes(prompt).decode(), index)
            choices.append(
                {
                    "index": index,
                    "message": {"content": text},
                    "finish_reason": "length",
                    "logprobs": {"content": [{"logprob": -math.log(10)}] * len(text)},
                    "token_ids": list(text.encode()),
                    # The base has a context of 128 tokens.
                    "prompt_token_ids": [*body.get("prompt_token_ids", ()), *prompt[-16:]],
                }
            )
        return web.json_response({"choices": choices})

    async def _train(self, request: web.Request) -> web.Response:
        command = request.match_info["command"]
        if command == "declared":
            bound = self.declared
            return web.json_response({} if bound is None else bound.model_dump(exclude_none=True))
        if request.method == "POST":
            self.traces.append(request.headers.get("traceparent", ""))
        if command == self.refuse_next:
            self.refuse_after -= 1
            if self.refuse_after < 0:
                self.refuse_next, self.refuse_after = "", 0
                return web.json_response({}, status=409)
        headers = {h: request.headers[h] for h in (IDEMPOTENCY_KEY, TERM) if h in request.headers}
        if self.declared is not None:
            headers[DECLARED] = self.declared.model_dump_json(exclude_none=True)
        token = identity.issue(PRIVATE, "gateway", AUDIENCE, 1)
        async with self._session.request(
            request.method,
            f"{self._trainer}train/{command}",
            data=await request.read(),
            headers=headers | {"Authorization": f"Bearer {token}"},
        ) as answer:
            body = await answer.read()
            return web.Response(body=body, status=answer.status, headers=_kept(answer))


def _kept(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {"Content-Type": answer.headers["Content-Type"]}


@pytest.fixture
async def passage(tmp_path: Path) -> AsyncIterator[tuple[Passage, str]]:
    async with passage_at(tmp_path) as made:
        yield made


@asynccontextmanager
async def passage_at(tmp_path: Path) -> AsyncIterator[tuple[Passage, str]]:
    """A trainer with a volume in a folder, and the way to it."""
    torch.set_num_threads(1)
    (tmp_path / "tasks").mkdir(parents=True)
    rows = [json.dumps({"prompt": f"{digit}=", "answer": str(digit)}) for digit in range(8)]
    (tmp_path / "tasks" / "tasks.jsonl").write_text("\n".join(rows))
    volume = tmp_path / "weights"
    volume.mkdir()
    base = tiny.write_base(volume, tmp_path / "source")
    service = Service(KEYS, AUDIENCE)

    def make(publish: Any) -> Engine:
        store = CheckpointStore(volume, tiny.MODEL)
        log = CommandLog(store.model_directory(tiny.MODEL), lock_seconds=1.0)
        compute = LocalCompute(tiny.policy(volume, base))
        engine = Engine(
            TrainingState(model=tiny.MODEL, base=base, compute=compute, store=store, log=log),
            publish,
        )
        engine.assign(tiny.assignment(run=run_identity("run", UID)))
        return engine

    async with TestServer(service.app()) as trainer, aiohttp.ClientSession() as session:
        await service.start(make)
        made = Passage(str(trainer.make_url("/")), session)
        async with TestServer(made.app()) as gateway:
            yield made, str(gateway.make_url("/"))
        service.feed.close()


async def drive(url: str, tasks: Path, modules: Mapping[str, str] | None = None) -> None:
    """A runner process, from its start to its end; modules are named ``configmap/key``."""
    around = surroundings(modules=modules)
    journal = Journal("default/run")
    patience = Patience(deadline=60.0, first_delay=0.01)
    async with GatewayClient(url, "default/tiny", "secret", patience=patience) as client:
        loop = Loop(
            client,
            ("default", "run"),
            open_tasks=lambda taskset: open_taskset(taskset, tasks),
            open_rewards=lambda spec, tasks: open_rewards(spec, tasks, around),
            open_loss=lambda ref: open_loss(ref, around.module),
            journal=journal,
            waiting=Waiting(journal, poll_seconds=0.01),
        )
        await loop.drive()


def checkpoints(volume: Path) -> list[Path]:
    """The committed checkpoints, oldest first."""
    found = (volume / "checkpoints").glob("*/sha256-*")
    return sorted(found, key=lambda path: json.loads((path / "manifest.json").read_text())["step"])


def metrics_of(checkpoint: Path) -> dict[str, float]:
    """The figures of the step that made it."""
    (step,) = map(json.loads, (checkpoint / "metrics.jsonl").read_text().splitlines())
    return dict(step)


async def test_a_run_leaves_a_checkpoint_a_step_with_metrics_and_rollouts(
    passage: tuple[Passage, str], tmp_path: Path
) -> None:
    gateway, url = passage
    await drive(url, tmp_path / "tasks")
    committed = checkpoints(tmp_path / "weights")
    assert len(committed) == 3
    names = ["base", f"{tiny.MODEL}-000001", f"{tiny.MODEL}-000002"]
    assert gateway.samples == [f"default/tiny@{name}" for name in names for _ in range(2)]
    for path in committed:
        lines = (path / "rollouts.jsonl").read_text().splitlines()
        assert [json.loads(line)["tokens"] for line in lines] == [1] * 8
        (step,) = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert 0 < step["rollout/reward/mean"] < 1


async def test_a_step_is_one_trace_of_its_samples_and_its_commands(
    passage: tuple[Passage, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, url = passage
    gateway.spec["steps"] = 2
    monkeypatch.setenv(*SOON)
    with collector() as kept:
        spans.start(kept.environment(), "espalier-runner", run="run")
        try:
            await drive(url, tmp_path / "tasks")
        finally:
            spans.stop()
        steps = [one for one in kept.spans if one.name == "step"]
    position = [(one.about[spans.STEP], one.about[spans.CHECKPOINT]) for one in steps]
    assert position == [(1, f"{tiny.MODEL}-000001"), (2, f"{tiny.MODEL}-000002")]
    assert {one.about[spans.RUN] for one in steps} == {"run"}
    carried = [header.split("-")[1] for header in gateway.traces]
    # Two samples, gradients and a step each.
    assert carried == [one.trace for one in steps for _ in range(4)]
    assert steps[0].trace != steps[1].trace


async def test_a_runner_that_ended_before_its_optimizer_step_leaves_no_gradient_behind(
    passage: tuple[Passage, str], tmp_path: Path
) -> None:
    gateway, url = passage
    gateway.spec["steps"] = 1
    gateway.refuse_next = "optim-step"
    with pytest.raises(RefusedError):
        await drive(url, tmp_path / "tasks")
    async with GatewayClient(url, "default/tiny", "secret") as client:
        assert (await client.state()).pending == 1
        await drive(url, tmp_path / "tasks")
        state = await client.state()
    assert (state.run_step, state.pending) == (1, 0)
    assert (state.cursor["run_step"], state.cursor["next_task"]) == (1, 2)
    (path,) = checkpoints(tmp_path / "weights")
    # One forward-backward of two groups of four single tokens, not two of them.
    (step,) = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert step["tokens/trained"] == 8


async def test_a_declared_game_takes_real_steps_on_all_of_its_turns(
    passage: tuple[Passage, str], tmp_path: Path
) -> None:
    gateway, url = passage
    game = {"maxTurns": 3, "target": 16, "invalidMoves": {"penalty": "0.1", "limit": 9}}
    gateway.spec |= {"steps": 2, "taskset": {"seed": 1, "size": 4, "game2048": game}}
    words = ("up", "down", "left", "right", "pass")
    gateway.says = lambda prompt, index: words[random.randrange(len(words))]
    random.seed(0)
    await drive(url, tmp_path / "tasks")
    committed = checkpoints(tmp_path / "weights")
    assert len(committed) == 2
    for path in committed:
        records = [json.loads(line) for line in (path / "rollouts.jsonl").read_text().splitlines()]
        (step,) = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert {record["turns"] for record in records} == {3}
        trained = sum(record["tokens"] for record in records if record["trained"])
        # The boards are in the prompts, and none of their tokens is among the trained ones.
        assert step["tokens/trained"] == trained > 0
