"""``espalier dev`` as a user has it: real trainer, real vLLM, edits of files, a restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from dev.ports import free_port
from tests.sampler.tiny import make_model
from tests.telemetry.collector import Collector, collector

from espalier import Fit, FitConfig, Sampling, Session, TrainingClient

START_SECONDS = 240
# Two float32 implementations of one model agree on a log-prob to this.
SAME = 1e-3
MANIFESTS = """
apiVersion: espalier.dev/v1alpha1
kind: TrainableModel
metadata: {name: tiny}
spec:
  source: {base: {image: tiny}}
  adapter: {rank: 8, alpha: 16}
  trainer: {dtype: float32}
  rollout: {replicas: 1, maxModelTokens: 64}
  storage: {persistentVolumeClaim: {claimName: weights}}
---
apiVersion: espalier.dev/v1alpha1
kind: TrainingRun
metadata: {name: tiny}
spec:
  modelRef: {name: tiny}
  driver: Client
  steps: 100
"""
HEAD = """
apiVersion: espalier.dev/v1alpha1
kind: CheckpointHead
metadata: {name: tiny}
spec: {modelRef: {name: tiny}, mode: MODE}
"""


@pytest.fixture
def kept() -> Iterator[Collector]:
    with collector() as made:
        yield made


@dataclass(frozen=True)
class Prompt:
    id: str


async def varied(task: Prompt, session: Session) -> float:
    await session.sample([{"role": "user", "content": task.id}])
    return float(session.rollout.rollout_idx % 2)


async def probe(client: TrainingClient) -> tuple[list[int], list[float], list[float]]:
    """A completion's tokens, its log-probs as sampled, and as the trainer's forward has them."""
    (found,) = await client.sample([{"role": "user", "content": "1"}], max_tokens=12)
    tokens = [*found.prompt_token_ids, *found.token_ids]
    return tokens, list(found.logprobs), await scores(client, tokens, len(found.token_ids))


async def scores(client: TrainingClient, tokens: list[int], last: int) -> list[float]:
    """The trainer's log-probs of the last tokens."""
    (found,) = await client.compute_logprobs([tokens])
    return found[-last:]


async def seen_in_the_console(access: dict[str, str]) -> None:
    """The tree and, read by vLLM's pod, the rollouts of its first step."""
    model = f"{access['base_url']}/console/api/v1/models/default/tiny"
    headers = {"Authorization": f"Bearer {access['token']}"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:
        tree = await (await session.get(model)).json()
        kept = await (await session.get(f"{model}/checkpoints/tiny-000001/rollouts")).json()
    assert [node["name"] for node in tree["checkpoints"]] == ["tiny-000001", "tiny-000002"]
    assert [record["reward"] for record in kept["records"]] == [0.0, 1.0]


async def in_one_trace(kept: Collector) -> None:
    """A sample from the gateway to vLLM's own span, gradients to the engine, and a head's move."""
    about = {"espalier.namespace": "default", "espalier.model": "tiny"}
    route = "POST /v1/chat/completions"
    paths = {
        "llm_request": [
            ("espalier-sampler", "llm_request"),
            ("espalier-sampler", route),
            ("espalier-dev", "POST"),
            ("espalier-dev", route),
        ],
        "engine forward-backward": [
            ("espalier-trainer", "engine forward-backward"),
            ("espalier-trainer", "POST /train/forward-backward"),
            ("espalier-dev", "POST"),
            ("espalier-dev", "POST /v1/models/{slug}/train/{command}"),
        ],
        "POST /espalier/v1/serve": [
            ("espalier-sampler", "POST /espalier/v1/serve"),
            ("espalier-dev", "POST"),
            ("espalier-dev", "reconcile CheckpointHead"),
        ],
    }
    for name, path in paths.items():
        # vLLM has one as well of what the sampler itself asks it, when it starts.
        last = await asyncio.to_thread(
            kept.wait, lambda span, name=name: span.name == name and span.parent
        )
        assert about.items() <= last.about.items()
        assert await asyncio.to_thread(kept.ancestors, last) == path


class Dev:
    """A running ``espalier dev`` and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def says(self, pattern: str) -> re.Match[str]:
        """Waits for a line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            while True:
                line = (await self.process.stdout.readline()).decode()
                assert line, f"ended before {pattern!r}: {''.join(self.lines)}"
                self.lines.append(line)
                if found := re.search(pattern, line):
                    return found


@asynccontextmanager
async def dev(
    directory: Path, model: Path, port: int, *, image: str = "tiny", **environment: str
) -> AsyncIterator[Dev]:
    command = ("-m", "espalier.cli.main", "dev", str(directory), "--port", str(port))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, "--image", f"{image}={model}"),
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **environment,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Dev(process)
    try:
        yield running
    finally:
        # Where it has ended by itself, that is what the test says.
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        rest, _ = await process.communicate()
        running.lines.append(rest.decode())


@pytest.mark.vllm
@pytest.mark.timeout(900)
async def test_a_tree_grows_is_pinned_by_an_edit_and_goes_on_after_a_restart(
    tmp_path: Path, kept: Collector
) -> None:
    model, manifests = tmp_path / "model", tmp_path / "manifests"
    make_model(model)
    manifests.mkdir()
    (manifests / "model.yaml").write_text(MANIFESTS)
    (manifests / "head.yaml").write_text(HEAD.replace("MODE", "Track"))
    port = free_port()
    small = FitConfig(
        steps=2, learning_rate=1e-2, group=2, tasks_per_step=1, sampling=Sampling(max_tokens=4)
    )
    async with dev(manifests, model, port, **kept.environment()) as running:
        found = await running.says(r"ESPALIER_GATEWAY_URL=(\S+) ESPALIER_TOKEN=(\S+)")
        await running.says("TrainingRun tiny: AwaitingClient")
        access = {"base_url": found[1], "token": found[2]}
        async with TrainingClient("tiny", **access) as client:
            tokens, sampled, trained = await probe(client)
            assert sampled == pytest.approx(trained, abs=SAME)
            await Fit(client, [Prompt("1")], varied, small).fit_async()
            # The very next sample is of the new weights, which the trainer has too.
            _, later, trained = await probe(client)
            assert later == pytest.approx(trained, abs=SAME)
            moved = await scores(client, tokens, len(sampled))
            assert max(abs(a - b) for a, b in zip(moved, sampled, strict=True)) > 20 * SAME
            head = await client.head()
            assert head is not None
            assert head.name == "tiny-000002"
            await seen_in_the_console(access)
            await in_one_trace(kept)
            pin = "Pin, checkpointRef: {name: tiny-000001}, onPin: Branch"
            (manifests / "head.yaml").write_text(HEAD.replace("MODE", pin))
            await running.says("CheckpointHead tiny: Pinned: pinned to tiny-000001")
            head = await client.head()
            assert head is not None
            assert head.name == "tiny-000001"
    assert running.process.returncode == 0
    assert "stopped; start again" in running.lines[-1]
    (manifests / "head.yaml").write_text(HEAD.replace("MODE", "Track"))
    async with dev(manifests, model, port) as running:
        await running.says("TrainingRun tiny: Training")
        async with TrainingClient("tiny", **access) as client:
            more = FitConfig(**{**vars(small), "steps": 3})
            await Fit(client, [Prompt("1")], varied, more).fit_async()
            listed = await client.checkpoints()
    parents = {c.name: c.prev_model_checkpoint_id for c in listed}
    assert len(parents) == 3
    # The branch that the pin began grows from the checkpoint that it named.
    (grown,) = set(parents) - {"tiny-000001", "tiny-000002"}
    assert parents[grown] == next(c.id for c in listed if c.name == "tiny-000001")
