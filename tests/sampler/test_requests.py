"""Every parameter of a completion over a real vLLM: right, or refused with 400; never the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from tests.sampler import server, tiny
from tests.sampler.test_server import Weights, hugging_face

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

CONTEXT = 256
PROMPTS = [
    [5, 9, 200, 31],
    [7, 77],
    [3, 1, 4, 1, 5, 9, 2, 6],
    [8] * 100,
    [(7 * n) % 300 for n in range(CONTEXT - 2)],
]
# Two ways to add in float32; a wrong adapter is off by 0.1 and more.
EQUAL = 1e-4
# Hugging Face's model by adapter, of this module's one set of weights.
REFERENCES: dict[int | None, Any] = {}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A base; two adapters of the inner layers, and one of the head and a layer below it."""
    model = tiny.make_model(tmp_path_factory.mktemp("model"), tied=False)
    volume = tmp_path_factory.mktemp("weights")
    base = tiny.commit_base(volume, model)
    inner = [tiny.commit_adapter(volume, model, base, seed=seed) for seed in range(2)]
    head = tiny.commit_adapter(volume, model, base, seed=2, targets=["down_proj", "lm_head"])
    return Weights(volume, model, base, (*inner, head))


@pytest.fixture(scope="module")
def rollout(weights: Weights) -> Iterator[server.Rollout]:
    process = server.start(weights.volume, weights.base, max_model_tokens=CONTEXT)
    try:
        server.wait_healthy(process)
        assert process.serve(*map(weights.name, range(3))).status_code == 200
        yield process
    finally:
        process.stop()


def alive(rollout: server.Rollout) -> bool:
    """Whether the engine still samples."""
    answer = rollout.complete("base", [5], max_tokens=1)
    return answer.status_code == 200 and rollout.get("/healthz").status_code == 200


def scored(answer: httpx.Response) -> torch.Tensor:
    """The log-probs of a prompt's tokens but the first, as ``prompt_logprobs`` gives them."""
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    tokens, entries = choice["prompt_token_ids"], choice["prompt_logprobs"]
    assert entries[0] is None and len(entries) == len(tokens)
    pairs = zip(tokens[1:], entries[1:], strict=True)
    return torch.tensor([entry[str(token)]["logprob"] for token, entry in pairs])


def expected(weights: Weights, adapter: int | None, prompt: list[int]) -> torch.Tensor:
    if adapter not in REFERENCES:
        REFERENCES[adapter] = hugging_face(weights, adapter)
    with torch.no_grad():
        logits = REFERENCES[adapter](torch.tensor([prompt])).logits[0]
    targets = torch.tensor(prompt[1:])[:, None]
    return torch.log_softmax(logits, -1)[:-1].gather(1, targets)[:, 0]


def named(weights: Weights, adapter: int | None) -> str:
    return "base" if adapter is None else weights.name(adapter)


@pytest.mark.parametrize("adapter", [None, 0, 1, 2])
def test_log_probs_of_a_prompt_are_those_of_hugging_face(
    rollout: server.Rollout, weights: Weights, adapter: int | None
) -> None:
    for prompt in PROMPTS:
        answer = rollout.complete(
            named(weights, adapter), prompt, max_tokens=1, temperature=0.5, prompt_logprobs=1
        )
        torch.testing.assert_close(
            scored(answer), expected(weights, adapter, prompt), atol=EQUAL, rtol=0
        )


def test_in_a_mixed_batch_each_prompt_is_scored_with_its_own_adapter(
    rollout: server.Rollout, weights: Weights
) -> None:
    """Prompts of as many rows as the batch has requests are where a wrong mapping would fit."""
    asked = [(adapter, prompt) for prompt in PROMPTS for adapter in (None, 0, 1, 2)] * 2

    def ask(one: tuple[int | None, list[int]]) -> httpx.Response:
        adapter, prompt = one
        return rollout.complete(named(weights, adapter), prompt, max_tokens=1, prompt_logprobs=0)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, asked))
    for (adapter, prompt), answer in zip(asked, answers, strict=True):
        torch.testing.assert_close(
            scored(answer), expected(weights, adapter, prompt), atol=EQUAL, rtol=0
        )


def test_a_prompt_whose_beginning_is_cached_is_scored_in_full(
    rollout: server.Rollout, weights: Weights
) -> None:
    prompt = [(11 * n) % 300 for n in range(150)]
    assert rollout.complete(weights.name(0), prompt, max_tokens=1).status_code == 200
    longer = [*prompt, 17, 18]
    answer = rollout.complete(weights.name(0), longer, max_tokens=1, prompt_logprobs=0)
    torch.testing.assert_close(scored(answer), expected(weights, 0, longer), atol=EQUAL, rtol=0)


@pytest.mark.parametrize("adapter", [None, 0, 2])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_echo_puts_the_prompt_and_its_log_probs_before_the_completion(
    rollout: server.Rollout, weights: Weights, adapter: int | None, max_tokens: int
) -> None:
    prompt = PROMPTS[2]
    answer = rollout.complete(
        named(weights, adapter), prompt, max_tokens=max_tokens, echo=True, logprobs=1
    )
    assert answer.status_code == 200, answer.text
    first, *found = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert first is None
    torch.testing.assert_close(
        torch.tensor(found[: len(prompt) - 1]),
        expected(weights, adapter, prompt),
        atol=EQUAL,
        rtol=0,
    )


def test_a_chat_tells_the_log_probs_of_its_rendered_prompt(
    rollout: server.Rollout, weights: Weights
) -> None:
    messages = [{"role": "user", "content": "1 + 2?"}]
    answer = rollout.chat(weights.name(1), messages, prompt_logprobs=1, max_tokens=1)
    body = answer.json()
    tokens, entries = body["prompt_token_ids"], body["prompt_logprobs"]
    found = [e[str(t)]["logprob"] for t, e in zip(tokens[1:], entries[1:], strict=True)]
    torch.testing.assert_close(
        torch.tensor(found), expected(weights, 1, tokens), atol=EQUAL, rtol=0
    )


# Tokens 68 and 69 of the tiny tokenizer are "a" and "b".
Choices = list[dict[str, Any]]
OBJECT = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}


def texts(pattern: str) -> Callable[[Choices], bool]:
    return lambda choices: all(re.fullmatch(pattern, choice["text"]) for choice in choices)


def count(number: int) -> Callable[[Choices], bool]:
    return lambda choices: len(choices) == number


def every_token(allowed: Callable[[int], bool]) -> Callable[[Choices], bool]:
    return lambda choices: all(
        allowed(token) for choice in choices for token in choice["token_ids"]
    )


def ended_by(reason: str | int) -> Callable[[Choices], bool]:
    return lambda choices: all(
        choice["finish_reason"] == "stop" and choice["stop_reason"] == reason for choice in choices
    )


def tops(number: int) -> Callable[[Choices], bool]:
    return lambda choices: all(
        number <= len(top) <= number + 1
        for choice in choices
        for top in choice["logprobs"]["top_logprobs"]
    )


# What a completion may ask for, and what its choices must then be.
HONOURED: dict[str, tuple[dict[str, Any], Callable[[Choices], bool]]] = {
    "n": ({"n": 3}, count(3)),
    "two prompts": ({"prompt": ["a", "bc"], "n": 2}, count(4)),
    "two prompts of tokens": (
        {"prompt": [[1, 2], [3, 4, 5]]},
        lambda choices: [c["prompt_token_ids"] for c in choices] == [[1, 2], [3, 4, 5]],
    ),
    "a prompt that fills the context": ({"prompt": [7] * (CONTEXT - 1)}, count(1)),
    "regex": ({"structured_outputs": {"regex": "[0-9]{3}"}, "max_tokens": 9}, texts("[0-9]{3}")),
    "choice": ({"structured_outputs": {"choice": ["yes", "no"]}, "n": 4}, texts("yes|no")),
    "grammar": (
        {"structured_outputs": {"grammar": 'root ::= "a" | "b" root'}, "max_tokens": 40},
        texts("b*a|b{40}"),
    ),
    "JSON schema": (
        {"structured_outputs": {"json": OBJECT}, "max_tokens": 40},
        lambda choices: any(
            whole.startswith("".join(choices[0]["text"].split()))
            for whole in ('{"a":1}', '{"a":2}')
        ),
    ),
    "stop string": (
        {"stop": "aa", "logit_bias": {"68": 100}, "temperature": 0},
        lambda choices: ended_by("aa")(choices) and texts("")(choices),
    ),
    "stop string kept": (
        {
            "stop": ["aa"],
            "logit_bias": {"68": 100},
            "temperature": 0,
            "include_stop_str_in_output": True,
        },
        texts("aa"),
    ),
    "stop token": (
        {"stop_token_ids": [68], "logit_bias": {"68": 100}, "temperature": 0},
        lambda choices: ended_by(68)(choices) and choices[0]["token_ids"] == [68],
    ),
    "least tokens": (
        {"stop_token_ids": [68], "logit_bias": {"68": 100}, "min_tokens": 3, "temperature": 0},
        lambda choices: len(choices[0]["token_ids"]) == 4 and choices[0]["token_ids"][-1] == 68,
    ),
    "logit bias": ({"logit_bias": {"5": 100}, "ignore_eos": True}, every_token(lambda t: t == 5)),
    "allowed tokens": (
        {"allowed_token_ids": [5, 6], "n": 4},
        every_token(lambda t: t in (5, 6)),
    ),
    "bad words": (
        {"bad_words": ["a"], "allowed_token_ids": [68, 69], "n": 4},
        every_token(lambda t: t == 69),
    ),
    "no log-probs beside the sampled": ({"logprobs": 0}, tops(1)),
    # By id, since several tokens of a byte-level vocabulary have no text of their own.
    "most log-probs": ({"logprobs": 20, "return_tokens_as_token_ids": True}, tops(20)),
    "log-probs of chosen tokens": (
        {"logprobs": 1, "logprob_token_ids": [5, 6]},
        lambda choices: all(choice["logprobs"] for choice in choices),
    ),
    "seed": ({"seed": -5, "n": 2, "prompt": [7] * 200}, count(2)),
    "more tokens than the context": (
        {"prompt": [5] * (CONTEXT - 9), "max_tokens": 4 * CONTEXT, "ignore_eos": True},
        lambda choices: len(choices[0]["token_ids"]) == 9,
    ),
    "unknown fields that ask for nothing": (
        {"store": False, "service_tier": "auto", "metadata": None},
        count(1),
    ),
    "a schema of a tree": (
        {
            "structured_outputs": {
                "json": {
                    "type": "object",
                    "properties": {"below": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                }
            }
        },
        count(1),
    ),
    "top k beyond the vocabulary": ({"top_k": 2**33}, count(1)),
    "top k": ({"top_k": 1, "n": 4}, lambda c: len({tuple(x["token_ids"]) for x in c}) == 1),
    "penalties": (
        {"repetition_penalty": 1.2, "presence_penalty": 1, "frequency_penalty": 1},
        count(1),
    ),
    "extreme penalty": ({"repetition_penalty": 1e-300}, count(1)),
    "beam search": ({"use_beam_search": True, "n": 2}, count(2)),
    "cut prompt": (
        {"prompt": list(range(5, 25)), "truncate_prompt_tokens": 3, "truncation_side": "left"},
        lambda choices: choices[0]["prompt_token_ids"] == [22, 23, 24],
    ),
}

# What is refused: the message must name the cause.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "suffix": ({"suffix": "x"}, "suffix"),
    "an unknown field": ({"guided_regex": "a"}, "guided_regex is unknown here"),
    "a number beyond 64 bits": ({"top_k": 2**70}, "top_k is a number beyond 64 bits"),
    "tokens beyond 64 bits": ({"stop_token_ids": [5, 2**70]}, "stop_token_ids is a number"),
    "a schema of nothing but itself": (
        {"structured_outputs": {"json": {"$ref": "#"}}},
        "refers to itself without end",
    ),
    "a schema that turns back": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "x",
                    "schema": {
                        "$ref": "#/$defs/a",
                        "$defs": {
                            "a": {"anyOf": [{"$ref": "#/$defs/b"}]},
                            "b": {"$ref": "#/$defs/a"},
                        },
                    },
                },
            }
        },
        "refers to itself without end",
    ),
    "no samples": ({"n": 0}, "n must be at least 1"),
    "too many samples": ({"n": 10**6}, "n is 1000000, and 1024 are taken"),
    "empty prompt": ({"prompt": ""}, "prompt"),
    "no prompts": ({"prompt": []}, "prompt"),
    "foreign token": ({"prompt": [1, 99999]}, "out of vocabulary"),
    "negative token": ({"prompt": [-1]}, "prompt"),
    "prompt as long as the context": ({"prompt": [7] * CONTEXT}, "max_tokens"),
    "all log-probs": ({"logprobs": -1}, "max allowed: 20"),
    "all log-probs of the prompt": ({"prompt_logprobs": -1}, "max allowed: 20"),
    "echo with all log-probs": ({"echo": True, "logprobs": -1}, "max allowed: 20"),
    "streamed log-probs of the prompt": ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    "negative log-probs": ({"logprobs": -2}, "logprobs"),
    "log-probs of foreign tokens": ({"logprobs": 1, "logprob_token_ids": [-3]}, "out-of-vocab"),
    "bias of a foreign token": ({"logit_bias": {"99999": 1}}, "out-of-vocab"),
    "foreign stop token": ({"min_tokens": 3, "stop_token_ids": [401]}, "out-of-vocab"),
    "negative stop token": ({"min_tokens": 3, "stop_token_ids": [-99999]}, "out-of-vocab"),
    "foreign allowed token": ({"allowed_token_ids": [99999]}, "out-of-vocab"),
    "nothing allowed": ({"allowed_token_ids": []}, "allowed_token_ids"),
    "empty bad word": ({"bad_words": [""]}, "bad_words"),
    "empty stop": ({"stop": ""}, "stop cannot contain an empty string"),
    "more least than most tokens": ({"min_tokens": 9}, "min_tokens"),
    "broken regex": ({"structured_outputs": {"regex": "(["}}, "regex"),
    "regex with a reference": ({"structured_outputs": {"regex": r"(a)\1"}}, "backreferences"),
    "broken grammar": ({"structured_outputs": {"grammar": "root ::= ("}}, "rammar"),
    "broken JSON schema": ({"structured_outputs": {"json": {"type": "nonsense"}}}, "nonsense"),
    "nothing to choose": ({"structured_outputs": {"choice": []}}, "empty list"),
    "two constraints": ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "one kind"),
    "temperature above 2": ({"temperature": 3}, "temperature"),
    "top p of nothing": ({"top_p": 0}, "top_p"),
    "seed beyond 64 bits": ({"seed": 2**64}, "seed"),
    "wide beam": ({"use_beam_search": True, "n": 30}, "max allowed: 20"),
    "a structure that is no object": ({"structured_outputs": "x"}, "structured_outputs is not of"),
    "prompt as embeddings": ({"prompt": None, "prompt_embeds": "AAAA"}, "prompt_embeds"),
}


@pytest.mark.parametrize("model", ["base", "adapter"])
@pytest.mark.parametrize("case", HONOURED)
def test_what_is_taken_is_honoured(
    rollout: server.Rollout, weights: Weights, case: str, model: str
) -> None:
    parameters, right = HONOURED[case]
    asked = {"prompt": "What is 1", "max_tokens": 4, "temperature": 1.0, **parameters}
    prompt = asked.pop("prompt")
    answer = rollout.complete("base" if model == "base" else weights.name(0), prompt, **asked)
    assert answer.status_code == 200, answer.text
    assert right(answer.json()["choices"]), answer.text
    assert alive(rollout)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_named(
    rollout: server.Rollout, weights: Weights, case: str
) -> None:
    parameters, said = REFUSED[case]
    asked = {"prompt": "What is 1", "max_tokens": 4, "temperature": 1.0, **parameters}
    prompt = asked.pop("prompt")
    answer = rollout.complete(weights.name(0), prompt, **asked)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]
    assert alive(rollout)
