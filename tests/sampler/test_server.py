"""A real vLLM server under our launcher, with a tiny model and three adapters."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from dev.docs.metrics_page import OF_VLLM
from tests.sampler import server, tiny
from tests.sampler.engine_alone import overwrite
from tests.security.fuzzing import SAMPLERS, told, unconnected
from tests.security.hostile_requests import requests

from espalier.sampler.guard import CALLERS, SERVE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROMPTS = ["What is 1 + 2?", "the quick brown", "abc 012", "x"]


@dataclass(frozen=True)
class Weights:
    """The volume of the tests: one base, and the names of its adapters."""

    volume: Path
    model: Path
    base: str
    digests: tuple[str, ...]

    def name(self, index: int) -> str:
        return f"tiny@{self.digests[index][7:19]}"

    def directory(self, index: int) -> Path:
        return self.volume / "checkpoints" / "arith" / self.digests[index].replace(":", "-")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    model = tiny.make_model(tmp_path_factory.mktemp("model"))
    volume = tmp_path_factory.mktemp("weights")
    base = tiny.commit_base(volume, model)
    digests = tuple(tiny.commit_adapter(volume, model, base, seed=seed) for seed in range(5))
    return Weights(volume, model, base, digests)


@pytest.fixture(scope="module")
def started(weights: Weights) -> Iterator[server.Rollout]:
    """A server with three slots that has been told nothing yet."""
    process = server.start(weights.volume, weights.base)
    try:
        server.wait_healthy(process)
        yield process
    finally:
        assert process.stop() == 0


@pytest.fixture(scope="module")
def rollout(started: server.Rollout, weights: Weights) -> server.Rollout:
    """The server, told to serve adapters 0, 1 and 2."""
    assert started.serve(*map(weights.name, range(3))).status_code == 200
    return started


def test_a_pod_that_has_started_is_ready_once_it_serves_what_it_is_told(
    started: server.Rollout, weights: Weights
) -> None:
    waiting = started.get("/readyz")
    assert (waiting.status_code, waiting.json()["reason"]) == (503, "AwaitingServe")
    assert started.get("/espalier/v1/serve", "operator").json()["ready"] is False
    assert started.serve(weights.name(0)).status_code == 200
    assert started.get("/readyz").status_code == 200


def greedy(rollout: server.Rollout, model: str, prompt: str) -> dict[str, Any]:
    answer = rollout.complete(model, prompt, max_tokens=24, temperature=0, logprobs=1)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_the_engine_is_forked(rollout: server.Rollout) -> None:
    """A spawned one imports all of vLLM again, 15 s of CPU time, and brings a resource tracker."""
    children: list[str] = []
    for thread in Path(f"/proc/{rollout.process.pid}/task").iterdir():
        # One that ends meanwhile has no children.
        with contextlib.suppress(OSError):
            children += (thread / "children").read_text().split()
    assert len(children) == 1


def test_a_mixed_batch_answers_as_solo_requests_do(
    rollout: server.Rollout, weights: Weights
) -> None:
    """The base's rows get no adapter, and each adapter's rows their own, within one batch."""
    asked = [
        (model, prompt) for prompt in PROMPTS for model in ("base", *map(weights.name, (0, 1)))
    ]
    solo = [greedy(rollout, *one) for one in asked]
    assert len({tuple(one["token_ids"]) for one in solo}) == len(asked)
    with ThreadPoolExecutor(len(asked)) as pool:
        mixed = list(pool.map(lambda one: greedy(rollout, *one), asked))
    for alone, together in zip(solo, mixed, strict=True):
        assert together["token_ids"] == alone["token_ids"]
        assert together["logprobs"]["token_logprobs"] == pytest.approx(
            alone["logprobs"]["token_logprobs"], abs=1e-4
        )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("adapter", [None, 0, 2])
def test_log_probs_are_those_of_hugging_face_at_the_sampled_temperature(
    rollout: server.Rollout, weights: Weights, temperature: float, adapter: int | None
) -> None:
    model = "base" if adapter is None else weights.name(adapter)
    answer = rollout.complete(
        model, PROMPTS, max_tokens=16, temperature=temperature, logprobs=1, n=2, seed=3
    )
    reference = hugging_face(weights, adapter)
    choices = answer.json()["choices"]
    assert len(choices) == 2 * len(PROMPTS)
    for choice in choices:
        prompt, output = choice["prompt_token_ids"], choice["token_ids"]
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + output])).logits[0] / temperature
        expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        expected = expected.gather(1, torch.tensor(output)[:, None])[:, 0]
        found = torch.tensor(choice["logprobs"]["token_logprobs"])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def hugging_face(weights: Weights, adapter: int | None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(weights.model, dtype=torch.float32)
    if adapter is None:
        return model.eval()
    return PeftModel.from_pretrained(model, weights.directory(adapter)).eval()


def test_the_served_adapters_are_read_back(rollout: server.Rollout, weights: Weights) -> None:
    wanted = [weights.name(1), weights.name(0)]
    expected = {"adapters": wanted, "ready": True, "base": True}
    assert rollout.serve(*wanted).json() == expected
    assert rollout.get("/espalier/v1/serve", "operator").json() == expected
    assert rollout.get("/readyz").status_code == 200


def test_metrics_count_what_was_sampled_without_a_series_for_each_adapter(
    rollout: server.Rollout, weights: Weights
) -> None:
    def series() -> dict[str, float]:
        lines = [line for line in rollout.scrape().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    greedy(rollout, "base", "warm")
    before = series()
    for index in range(3):
        greedy(rollout, weights.name(index), "x")
    after = series()
    assert after.keys() == before.keys()
    assert not [name for name in after if "tiny@" in name or "lora_requests" in name]
    (tokens,) = [name for name in after if name.startswith("vllm:generation_tokens_total{")]
    assert after[tokens] - before[tokens] > 0
    read = {name.partition("{")[0] for name in after}
    assert {n for n in OF_VLLM if n not in read and f"{n}_bucket" not in read} == set()


def test_an_adapter_that_is_not_served_loads_on_demand(
    rollout: server.Rollout, weights: Weights
) -> None:
    assert greedy(rollout, weights.name(3), "x") != greedy(rollout, "base", "x")


@pytest.mark.parametrize("model", ["tiny@000000000000", "../checkpoints/x", "tiny", "gpt-4"])
def test_an_unknown_model_is_404_and_says_why(rollout: server.Rollout, model: str) -> None:
    answer = rollout.complete(model, "x")
    assert answer.status_code == 404
    assert model.rsplit("/", maxsplit=1)[-1] in answer.json()["error"]["message"]


def test_what_cannot_be_served_leaves_the_served_as_they_are(
    rollout: server.Rollout, weights: Weights
) -> None:
    before = rollout.serve(weights.name(0)).json()
    unknown = rollout.serve(weights.name(1), "tiny@000000000000")
    assert (unknown.status_code, unknown.json()["reason"]) == (422, "AdapterNotFound")
    many = rollout.serve(*(weights.name(index) for index in range(4)))
    assert (many.status_code, many.json()["reason"]) == (422, "TooManyAdapters")
    assert rollout.get("/espalier/v1/serve", "operator").json() == before


def test_an_adapter_whose_directory_is_deleted_becomes_404_and_the_engine_lives(
    rollout: server.Rollout, weights: Weights, tmp_path: Path
) -> None:
    doomed = tmp_path / "other"
    digest = tiny.commit_adapter(weights.volume, weights.model, weights.base, seed=99)
    directory = weights.volume / "checkpoints" / "arith" / digest.replace(":", "-")
    name = f"tiny@{digest[7:19]}"
    assert greedy(rollout, name, "x")
    shutil.move(directory, doomed)
    assert rollout.complete(name, "x").status_code == 404
    assert rollout.get("/healthz").status_code == 200


def test_an_evicted_adapter_that_was_altered_is_a_404_and_the_engine_lives(
    rollout: server.Rollout, weights: Weights
) -> None:
    def committed(seed: int) -> str:
        return tiny.commit_adapter(weights.volume, weights.model, weights.base, seed=seed)

    def sampled(digest: str) -> dict[str, Any]:
        return greedy(rollout, f"tiny@{digest[7:19]}", "x")

    digest = committed(98)
    honest = sampled(digest)
    # As many as it keeps, so that it must read the first again.
    for seed in range(200, 206):
        sampled(committed(seed))
    directory = weights.volume / "checkpoints" / "arith" / digest.replace(":", "-")
    file = directory / "adapter_model.safetensors"
    content, before = file.read_bytes(), file.stat()
    overwrite(directory)
    # As if nothing had been written.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused = rollout.complete(f"tiny@{digest[7:19]}", "x")
    assert refused.status_code == 404, refused.text
    assert "FileAltered" in refused.text
    assert rollout.get("/healthz").status_code == 200
    assert greedy(rollout, "base", "x")
    file.write_bytes(content)
    assert sampled(digest) == honest
    assert rollout.serve(*map(weights.name, range(3))).status_code == 200


def test_a_seeded_request_repeats_and_an_unseeded_one_does_not(rollout: server.Rollout) -> None:
    def sample(**seed: int) -> list[int]:
        # An answer that may end at once could well be the same twice.
        answer = rollout.complete(
            "base", "abc", max_tokens=16, ignore_eos=True, temperature=1, **seed
        )
        return answer.json()["choices"][0]["token_ids"]

    assert sample(seed=5) == sample(seed=5)
    assert sample() != sample()


def test_a_prompt_beyond_the_context_gets_vllms_own_400(rollout: server.Rollout) -> None:
    answer = rollout.complete("base", [7] * 300)
    assert answer.status_code == 400
    assert "maximum context length is 256 tokens" in answer.json()["error"]["message"]


async def test_no_request_is_too_hostile_for_the_sampler(
    rollout: server.Rollout, weights: Weights
) -> None:
    """On every route, with the token of who may call it: no 500, no crash, and it serves on."""
    completions = [("POST", path) for path in ("/v1/completions", "/v1/chat/completions")]
    routes = [*(route for route in sorted(CALLERS) if route != ("POST", SERVE)), *completions]
    controls = [{"adapters": [weights.name(0)]}, {"adapters": [], "base": True}]
    drawn = [*requests(routes, SAMPLERS, 500), *requests([("POST", SERVE)], controls, 50)]
    before = greedy(rollout, weights.name(0), "abc")
    async with aiohttp.ClientSession(connector=unconnected()) as session:
        answers = await told(session, rollout.url, drawn, lambda _: rollout.headers("operator"))
    assert [answer for answer in answers if answer.fault()] == []
    # It reached the engine, and not the guard alone.
    statuses = Counter(a.status for a in answers if a.request.path.startswith("/v1/c"))
    assert statuses[200] > 10
    assert rollout.serve(*map(weights.name, range(3))).status_code == 200
    assert greedy(rollout, weights.name(0), "abc")["token_ids"] == before["token_ids"]


def test_sigterm_ends_a_server_whose_engine_is_starting(weights: Weights) -> None:
    starting = server.start(weights.volume, weights.base)
    engine = wait_for_engine(starting)
    assert starting.stop() == 143
    deadline = time.monotonic() + 60
    while Path(f"/proc/{engine}").exists():
        assert time.monotonic() < deadline, f"the engine process {engine} outlives its parent"
        time.sleep(0.1)


def wait_for_engine(starting: server.Rollout, seconds: float = 400) -> int:
    """The process id of the engine, as soon as it says that it initialises."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and starting.process.poll() is None:
        for line in starting.log.read_text().splitlines():
            found = json.loads(line) if line.startswith("{") else {}
            if (
                found.get("vllm_process_name") == "EngineCore"
                and "Initializing" in found["message"]
            ):
                return int(found["process"])
        time.sleep(0.1)
    raise AssertionError(f"no engine: {starting.log.read_text()[-3000:]}")
