"""A real vLLM server of a model of which all is trained: one checkpoint's weights at a time."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.sampler import server, tiny
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROMPTS = ["What is 1 + 2?", "the quick brown", "abc 012", "x"]
# Of a completion that a swap finds running: a busy machine samples them well before it is stopped.
RUNNING_TOKENS = 100


@dataclass(frozen=True)
class World:
    """A server, its volume, the model on it, and two checkpoints of all its weights."""

    rollout: server.Rollout
    volume: Path
    model: Path
    base: str
    digests: tuple[str, str]

    def name(self, index: int) -> str:
        return name_of(self.digests[index])

    def directory(self, name: str) -> Path:
        if name == "base":
            return self.model
        (found,) = (self.volume / "checkpoints").glob(f"*/sha256-{name.partition('@')[2]}*")
        return found

    def state(self) -> dict[str, Any]:
        return self.rollout.get("/espalier/v1/serve", "operator").json()


def name_of(digest: str) -> str:
    return f"tiny@{digest[7:19]}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Of a model whose head is its embedding; tests/local/test_full.py has one with a head."""
    model = tiny.make_model(tmp_path_factory.mktemp("model"))
    volume = tmp_path_factory.mktemp("weights")
    base = tiny.commit_base(volume, model)
    first, second = (tiny.commit_full(volume, model, base, seed=seed) for seed in (1, 2))
    rollout = server.start(volume, base, adapter_type="Full")
    try:
        server.wait_healthy(rollout)
        yield World(rollout, volume, model, base, (first, second))
    finally:
        assert rollout.stop() == 0


def sampled(world: World, model: str) -> list[dict[str, Any]]:
    answer = world.rollout.complete(
        model, PROMPTS, max_tokens=12, temperature=1, logprobs=1, seed=3
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return answer.json()["choices"]


def assert_same(ours: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """The same tokens, and their log-probs but for the sums' order.

    Which of the prompts the engine computes together depends on when each of them reached it.
    """
    for one, other in zip(ours, before, strict=True):
        assert one["token_ids"] == other["token_ids"]
        found, expected = (c["logprobs"]["token_logprobs"] for c in (one, other))
        assert found == pytest.approx(expected, abs=1e-5)


def difference(world: World, name: str, choices: list[dict[str, Any]]) -> float:
    """The largest, of log-probs as sampled to those of Hugging Face's model of the same files."""
    reference = hugging_face(world.directory(name))
    return max(difference_of_one(reference, choice) for choice in choices)


@cache
def hugging_face(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def difference_of_one(reference: Any, choice: dict[str, Any]) -> float:
    prompt, output = choice["prompt_token_ids"], choice["token_ids"]
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + output])).logits[0]
    expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    expected = expected.gather(1, torch.tensor(output)[:, None])[:, 0]
    return float((torch.tensor(choice["logprobs"]["token_logprobs"]) - expected).abs().max())


def test_every_set_of_weights_answers_with_hugging_faces_log_probs_whatever_came_before(
    world: World,
) -> None:
    """Going back to weights gives the very answers that they gave before."""
    a, b = world.name(0), world.name(1)
    assert world.rollout.get("/readyz").json()["reason"] == "AwaitingServe"
    first: dict[str, list[dict[str, Any]]] = {}
    for name in ("base", a, b, a, "base", b):
        wanted = [] if name == "base" else [name]
        said = {"adapters": wanted, "ready": True, "base": name == "base"}
        assert world.rollout.serve(*wanted).json() == said == world.state()
        choices = sampled(world, name)
        assert difference(world, name, choices) <= 1e-4
        assert_same(choices, first.setdefault(name, choices))
    assert world.rollout.get("/readyz").status_code == 200
    others = [difference(world, name, first[a]) for name in ("base", b)]
    assert min(others) > 0.1, "the weights differ too little for a wrong answer to show"


def test_only_what_is_loaded_is_answered(world: World) -> None:
    a, b = world.name(0), world.name(1)
    assert world.rollout.serve(a).status_code == 200
    for absent in (b, "base"):
        answer = world.rollout.complete(absent, "x")
        assert answer.status_code == 409
        assert f"now {a}" in answer.json()["error"]["message"]
    for unknown in ("tiny@000000000000", "tiny", "gpt-4"):
        assert world.rollout.complete(unknown, "x").status_code == 404
    listed = world.rollout.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [a]


def test_a_completion_that_runs_ends_on_the_weights_that_it_began_with(world: World) -> None:
    a, b = world.name(0), world.name(1)
    world.rollout.serve(a)
    body = {"model": a, "prompt": "abc", "max_tokens": RUNNING_TOKENS, "temperature": 0,
            "ignore_eos": True, "logprobs": 1, "return_token_ids": True,
            "stream": True}  # fmt: skip
    found: dict[str, Any] = {"token_ids": [], "logprobs": {"token_logprobs": []}}
    url, headers = world.rollout.url + "/v1/completions", world.rollout.headers()
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream("POST", url, json=body, headers=headers, timeout=120) as stream,
    ):
        swap = None
        for line in stream.iter_lines():
            swap = swap or pool.submit(world.rollout.serve, b)
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert event["model"] == a
                choice = event["choices"][0]
                found["prompt_token_ids"] = (
                    choice.get("prompt_token_ids") or found["prompt_token_ids"]
                )
                found["token_ids"] += choice["token_ids"]
                found["logprobs"]["token_logprobs"] += choice["logprobs"]["token_logprobs"]
        assert swap is not None
        assert swap.result().json()["adapters"] == [b]
    assert len(found["token_ids"]) == RUNNING_TOKENS
    assert difference(world, a, [found]) <= 1e-4
    assert difference(world, b, sampled(world, b)) <= 1e-4


@contextmanager
def written_again_and_again(file: Path) -> Iterator[None]:
    """The bytes that are there, by another process: nobody who hashes them finds others."""
    stop = threading.Event()

    def write() -> None:
        with file.open("r+b") as opened:
            first = opened.read(8)
            while not stop.wait(0.001):
                opened.seek(0)
                opened.write(first)
                opened.flush()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        yield
        stop.set()
        writing.result()


def test_weights_whose_files_are_written_while_they_are_loaded_are_not_served(
    world: World,
) -> None:
    a, b = world.name(0), world.name(1)
    world.rollout.serve(a)
    with written_again_and_again(sorted(world.directory(b).glob("*.safetensors"))[0]):
        answer = world.rollout.serve(b)
    assert (answer.status_code, answer.json()["reason"]) == (500, "LoadFailed")
    assert "was changed after its bytes were hashed" in answer.json()["detail"]
    assert world.state() == {"adapters": [a], "ready": True, "base": False}
    assert difference(world, a, sampled(world, a)) <= 1e-4
    assert world.rollout.serve(b).json()["adapters"] == [b]


def test_weights_that_are_loaded_stay_when_their_files_are_overwritten(world: World) -> None:
    a = world.name(0)
    world.rollout.serve(a)
    before = sampled(world, a)
    files = {file: file.read_bytes() for file in world.directory(a).glob("*.safetensors")}
    for file, content in files.items():
        with file.open("r+b") as opened:
            opened.write(bytes(len(content)))
    assert_same(sampled(world, a), before)
    for file, content in files.items():
        file.write_bytes(content)


def damaged(world: World, kind: str) -> tuple[str, ...]:
    """What to ask for that cannot be served."""
    if kind == "TooManyAdapters":
        return world.name(0), world.name(1)
    if kind == "AdapterNotFound":
        return ("tiny@000000000000",)
    if kind == "NotFull":
        return (name_of(tiny.commit_adapter(world.volume, world.model, world.base, seed=1)),)
    digest = tiny.commit_full(world.volume, world.model, world.base, seed=7)
    directory = world.directory(name_of(digest))
    shard = sorted(directory.glob("*.safetensors"))[0]
    if kind == "FileAltered":
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    elif kind == "WeightsDoNotFit":
        source = directory.parent / "source"
        shutil.copytree(directory, source)
        (source / "manifest.json").unlink()
        wide = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32)
        wide.resize_token_embeddings(512)
        for file in source.glob("*.safetensors*"):
            file.unlink()
        wide.save_pretrained(source)
        digest = tiny.commit_checkpoint(world.volume, source, world.base, 0, adapter_type="Full")
        shutil.rmtree(source)
        return (name_of(digest),)
    return (name_of(digest),)


@pytest.mark.parametrize(
    "reason",
    ["TooManyAdapters", "AdapterNotFound", "NotFull", "WeightsDoNotFit", "FileAltered"],
)
def test_what_cannot_be_loaded_leaves_what_is_served(world: World, reason: str) -> None:
    a = world.name(0)
    world.rollout.serve(a)
    answer = world.rollout.serve(*damaged(world, reason))
    assert (answer.status_code, answer.json()["reason"]) == (422, reason)
    assert world.state() == {"adapters": [a], "ready": True, "base": False}
    assert difference(world, a, sampled(world, a)) <= 1e-4
