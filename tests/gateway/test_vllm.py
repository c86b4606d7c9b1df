"""Completions through the gateway from a real vLLM server."""

from __future__ import annotations

import asyncio
import json
import math
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import PRIVATE_KEY, Gateway, Users
from tests.sampler.server import Rollout, start, wait_healthy
from tests.sampler.tiny import commit_adapter, commit_base, make_model

from espalier.core.names import adapter_name
from espalier.gateway.tinker.names import Sampler, Session
from espalier.gateway.world.world import NamespacedName
from espalier.sampler.flags import MAX_SEQUENCES
from espalier.tinker.messages_pb2 import SampleResponse

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PROMPT = "What is 1 + 2?"
# The most tokens of prompt and answer that the server is started with.
CONTEXT = 256
SLOTS = 3
GREEDY = {"max_tokens": 6, "temperature": 0, "return_token_ids": True}
CHAT = {"messages": [{"role": "user", "content": PROMPT}], **GREEDY, "logprobs": True}


@dataclass(frozen=True)
class Served:
    """A rollout server and the digests of the adapters on its volume, one more than its slots."""

    rollout: Rollout
    digests: tuple[str, ...]

    def direct(self, model: str) -> dict[str, Any]:
        """The greedy completion as the server itself gives it."""
        reply = self.rollout.complete(model, PROMPT, logprobs=1, max_tokens=6, temperature=0)
        assert reply.status_code == 200, reply.text
        choice: dict[str, Any] = reply.json()["choices"][0]
        return choice


@pytest.fixture(scope="module")
def served(users: Users, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    volume: Path = tmp_path_factory.mktemp("volume")
    model = make_model(tmp_path_factory.mktemp("model"))
    base = commit_base(volume, model)
    digests = tuple(commit_adapter(volume, model, base, seed=seed) for seed in range(1, SLOTS + 2))
    rollout = start(
        volume,
        base,
        private_key=PRIVATE_KEY,
        model="arith",
        namespace=users.namespace,
        uid="uid-arith-rollout-0",
        max_adapters=SLOTS,
    )
    try:
        wait_healthy(rollout, 400)
        rollout.serve(adapter_name("arith", digests[0])).raise_for_status()
        yield Served(rollout, digests)
    finally:
        rollout.stop()


@pytest.fixture
def arith(gateway: Gateway, served: Served) -> NamespacedName:
    model = gateway.world.model("arith")
    gateway.world.head(model, served.digests[0], step=1)
    for step, digest in enumerate(served.digests, 1):
        gateway.world.checkpoint(model, f"arith-{step:06d}", digest, step=step)
    port = int(served.rollout.url.rsplit(":", 1)[1])
    gateway.world.pod(model, "arith-rollout-0", ip="127.0.0.1", port=port)
    return model


async def complete(gateway: Gateway, model: str, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": PROMPT, "logprobs": 1, **GREEDY, **fields}
    reply = await gateway.post("/v1/completions", body)
    assert reply.status == 200, await reply.text()
    answer: dict[str, Any] = await reply.json()
    assert answer["model"] == model
    return answer


async def stream(gateway: Gateway, path: str, **body: Any) -> list[dict[str, Any]]:
    reply = await gateway.post(path, body | {"stream": True})
    assert reply.content_type == "text/event-stream"
    events = (await reply.text()).removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def same(ours: dict[str, Any], direct: dict[str, Any]) -> bool:
    return (
        ours["token_ids"] == direct["token_ids"]
        and ours["prompt_token_ids"] == direct["prompt_token_ids"]
        and ours["logprobs"]["token_logprobs"]
        == pytest.approx(direct["logprobs"]["token_logprobs"], abs=1e-5)
    )


async def test_each_name_samples_its_own_weights_alone_and_mixed(
    gateway: Gateway, arith: NamespacedName, served: Served
) -> None:
    names = {
        "arith": adapter_name("arith", served.digests[0]),
        "arith@arith-000002": adapter_name("arith", served.digests[1]),
        "arith@base": "base",
        f"{arith}@arith-000001": adapter_name("arith", served.digests[0]),
    }
    direct = {asked: served.direct(adapter) for asked, adapter in names.items()}
    assert len({tuple(choice["token_ids"]) for choice in direct.values()}) == 3
    answers = await asyncio.gather(*(complete(gateway, asked) for asked in names for _ in "12"))
    for answer in answers:
        assert same(answer["choices"][0], direct[answer["model"]])


async def test_tinkers_sample_is_the_same_completion_with_the_log_probs_of_its_prompt(
    gateway: Gateway, arith: NamespacedName, served: Served
) -> None:
    direct = served.direct(adapter_name("arith", served.digests[1]))
    prompt = {"chunks": [{"type": "encoded_text", "tokens": direct["prompt_token_ids"]}]}
    session = Session(arith.namespace, "0" * 16)
    asked = {
        "sampling_session_id": str(Sampler(session, 0, arith, "arith-000002")),
        "seq_id": 0,
        "prompt": prompt,
        "sampling_params": {"max_tokens": 6, "temperature": 0},
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 2,
        "topk_sample_logprobs": 3,
    }
    promised = await (await gateway.post("/api/v1/asample", asked)).json()
    wanted = {"request_id": promised["request_id"]}
    reply = await gateway.post("/api/v1/retrieve_future", wanted)
    assert (reply.status, reply.content_type) == (200, "application/x-protobuf")
    found = SampleResponse.FromString(await reply.read())
    (drawn,) = found.sequences
    assert array("i", drawn.tokens).tolist() == direct["token_ids"]
    logprobs = direct["logprobs"]["token_logprobs"]
    assert array("f", drawn.logprobs).tolist() == pytest.approx(logprobs, abs=1e-5)
    # Sampled greedily, every token is the most likely one.
    assert array("i", drawn.topk_sampled_logprobs.token_ids).tolist()[::3] == direct["token_ids"]
    scored = array("f", found.prompt_logprobs).tolist()
    assert len(scored) == found.topk_prompt_logprobs.length == len(direct["prompt_token_ids"])
    assert math.isnan(scored[0])
    assert all(value < 0 for value in scored[1:])


async def test_a_chat_has_prompt_tokens_tokens_and_logprobs_in_every_choice(
    gateway: Gateway, arith: NamespacedName
) -> None:
    reply = await gateway.post(
        "/v1/chat/completions", {"model": "arith", **CHAT, "temperature": 1, "n": 2}
    )
    answer = await reply.json()
    assert reply.status == 200, answer
    assert answer["model"] == "arith"
    assert len(answer["choices"]) == 2
    for choice in answer["choices"]:
        assert choice["prompt_token_ids"] == answer["prompt_token_ids"] != []
        assert len(choice["token_ids"]) == len(choice["logprobs"]["content"])


async def test_a_streamed_completion_says_the_same_as_a_whole_one(
    gateway: Gateway, arith: NamespacedName, served: Served
) -> None:
    chunks = await stream(
        gateway, "/v1/completions", model="arith", prompt=PROMPT, logprobs=1, **GREEDY
    )
    assert {chunk["model"] for chunk in chunks} == {"arith"}
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    direct = served.direct(adapter_name("arith", served.digests[0]))
    assert choices[0]["prompt_token_ids"] == direct["prompt_token_ids"]
    assert [t for c in choices for t in c["token_ids"] or ()] == direct["token_ids"]
    assert "".join(c["text"] for c in choices) == direct["text"]


async def test_a_streamed_chat_has_prompt_tokens_in_the_first_chunk_of_each_choice(
    gateway: Gateway, arith: NamespacedName
) -> None:
    whole = await (await gateway.post("/v1/chat/completions", {"model": "arith", **CHAT})).json()
    chunks = await stream(
        gateway, "/v1/chat/completions", model="arith", **CHAT | NEVER | {"n": 2, "temperature": 1}
    )
    assert {chunk["model"] for chunk in chunks} == {"arith"}
    for index in range(2):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert choices[0]["prompt_token_ids"] == whole["prompt_token_ids"]
        assert sum(len(c.get("token_ids") or ()) for c in choices) > 0


async def test_vllms_own_refusals_pass_with_their_status(
    gateway: Gateway, arith: NamespacedName, served: Served
) -> None:
    body = {"model": "arith", "prompt": [5] * 5000, "max_tokens": 4}
    reply = await gateway.post("/v1/completions", body)
    assert reply.status == 400
    assert "maximum" in (await reply.json())["error"]["message"]
    gateway.world.checkpoint(arith, "arith-000009", "sha256:" + "0" * 64, step=9)
    reply = await gateway.post("/v1/completions", body | {"model": "arith@arith-000009"})
    assert reply.status == 404


async def chat(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    reply = await gateway.post("/v1/chat/completions", {"model": "arith", **CHAT, **fields})
    answer: dict[str, Any] = await reply.json()
    assert reply.status == 200, answer
    choice: dict[str, Any] = answer["choices"][0]
    return choice


async def test_a_later_turn_continues_the_exact_tokens_of_the_one_before(
    gateway: Gateway, arith: NamespacedName
) -> None:
    first = await chat(gateway)
    # Tokens that no tokeniser would give for this text: they must come back as they are.
    sampled = [*first["token_ids"][:-1], 7, 7]
    exact = [*first["prompt_token_ids"], *sampled]
    turns = [*CHAT["messages"], first["message"], {"role": "user", "content": "And 4 + 5?"}]
    second = await chat(gateway, messages=turns, prompt_token_ids=exact, continuation_from=2)
    rendered = await chat(gateway, messages=turns)
    told, whole = second["prompt_token_ids"], rendered["prompt_token_ids"]
    assert told[: len(exact)] == exact
    assert told[-8:] == whole[-8:]
    assert told != whole
    only = await chat(gateway, messages=turns, checkpoint="arith-000002")
    assert only["prompt_token_ids"] == whole


# Of the tiny tokenizer: the only token of its vocabulary that ends an answer.
END = 0
NEVER, ALWAYS = {"logit_bias": {str(END): -100}}, {"logit_bias": {str(END): 100}}


@pytest.mark.parametrize("stop", [{}, {"stop": None}, {"stop": []}, {"stop": ["nowhere"]}])
async def test_an_answer_ends_at_the_tokenizers_end_whatever_stop_says(
    gateway: Gateway, arith: NamespacedName, stop: dict[str, Any]
) -> None:
    choice = await chat(gateway, **ALWAYS, **stop)
    assert (choice["finish_reason"], choice["token_ids"]) == ("stop", [END])


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"max_tokens": 3}, 3),
        # OpenAI's newer name goes before the older one.
        ({"max_tokens": 5, "max_completion_tokens": 2}, 2),
        ({"max_tokens": None, "max_completion_tokens": 2}, 2),
    ],
)
async def test_the_requests_own_most_tokens_win(
    gateway: Gateway, arith: NamespacedName, fields: dict[str, Any], count: int
) -> None:
    choice = await chat(gateway, **NEVER, **fields)
    assert (choice["finish_reason"], len(choice["token_ids"])) == ("length", count)


@pytest.mark.parametrize("most", [None, CONTEXT])
async def test_without_them_or_with_more_than_fits_an_answer_fills_the_context(
    gateway: Gateway, arith: NamespacedName, most: int | None
) -> None:
    choice = await chat(gateway, **NEVER, max_tokens=most)
    assert choice["finish_reason"] == "length"
    assert len(choice["prompt_token_ids"]) + len(choice["token_ids"]) == CONTEXT


async def test_a_seed_gives_the_same_samples_again_whatever_is_sampled_beside(
    gateway: Gateway, arith: NamespacedName
) -> None:
    """The seeds of a run's requests. Chunked prefill, which a seed would end, is off on a CPU."""
    drawn = {"temperature": 1.0, "n": 4, "max_tokens": 12, "model": "arith"}

    async def sampled(seed: int | None) -> list[list[int]]:
        reply = await gateway.post("/v1/chat/completions", CHAT | drawn | {"seed": seed})
        assert reply.status == 200, await reply.text()
        choices = (await reply.json())["choices"]
        return [c["token_ids"] for c in sorted(choices, key=lambda c: int(c["index"]))]

    seed = 2**46 + 12345
    alone = await sampled(seed)
    together = await asyncio.gather(*(sampled(given) for given in (seed, 1, None, seed, 2, None)))
    assert together[0] == together[3] == alone
    assert alone not in (together[1], together[2], together[4])
    # The completions of one request are others of each other.
    assert len({tuple(tokens) for tokens in alone}) > 1


FLOOD = 4 * MAX_SEQUENCES
LONG = {"max_tokens": 160, "ignore_eos": True}


@asynccontextmanager
async def flooded(gateway: Gateway, *models: str) -> AsyncIterator[list[dict[str, Any]]]:
    """A caller who keeps requests in flight, for these models in turn: the answers so far."""
    answers: list[dict[str, Any]] = []
    going_on = asyncio.Event()

    async def ask(model: str) -> None:
        while len(answers) < 4 * FLOOD:
            answers.append(await complete(gateway, model, **LONG))
            if len(answers) >= MAX_SEQUENCES:
                going_on.set()

    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(ask(models[n % len(models)])) for n in range(FLOOD)]
        await going_on.wait()
        yield answers
        for one in asking:
            one.cancel()


async def newcomer(gateway: Gateway, model: str) -> None:
    """A request of another caller, until it is answered."""
    body = {"model": model, "prompt": PROMPT, **GREEDY}
    reply = await gateway.post("/v1/completions", body, gateway.users.reader)
    assert reply.status == 200, await reply.text()


async def test_a_newcomer_is_served_before_what_waits_of_a_flood_which_samples_the_same(
    gateway: Gateway, arith: NamespacedName, served: Served
) -> None:
    (alone,) = (await complete(gateway, "arith", **LONG))["choices"]
    async with flooded(gateway, "arith") as answers:
        before = len(answers)
        await newcomer(gateway, "arith")
        # Served as they come, all that is in flight of the flood would have ended before it.
        assert len(answers) - before < FLOOD / 2
    # The cache has no room for so many: some were put off in the middle, and computed again.
    scraped = await asyncio.to_thread(served.rollout.scrape)
    assert counted(scraped, "vllm:num_preemptions_total") > 0
    assert all(same(answer["choices"][0], alone) for answer in answers)


async def test_a_flood_in_all_slots_keeps_no_other_checkpoint_out(
    gateway: Gateway, arith: NamespacedName
) -> None:
    *floods, wanted = (f"arith@{arith.name}-{step:06d}" for step in range(1, SLOTS + 2))
    async with flooded(gateway, *floods) as answers:
        before = len(answers)
        await newcomer(gateway, wanted)
        # vLLM by itself waits until by chance no answer of one of the others runs.
        assert len(answers) - before < FLOOD / 2


def counted(scraped: str, *metrics: str) -> float:
    """The sum of these metrics of vLLM."""
    lines = (line for line in scraped.splitlines() if line.startswith(metrics))
    return sum(float(line.rpartition(" ")[2]) for line in lines)
