"""From Tinker's sample request to a completion, and back. Pure.

The answer's ``logprobs`` are of the distribution that was sampled from, so at another temperature
than 1 they are not those of the trainer's losses.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.gateway.tinker.bodies import Sample
from espalier.tinker.messages_pb2 import (
    STOP_REASON_LENGTH,
    STOP_REASON_STOP,
    SampledSequence,
    SampleResponse,
    TopkLogprobs,
)
from espalier.untrusted import UnreadableError

TEXT = "encoded_text"
# What stands in a row of the most likely tokens that has fewer than the others.
NO_TOKEN, NO_LOGPROB = 0, -99999.0
_TOKEN = "token_id:"
_STOPS = {"stop": STOP_REASON_STOP, "length": STOP_REASON_LENGTH}


def problem(asked: Sample) -> str:
    """Why a request cannot be honoured: field, problem, remedy. Empty if it can."""
    for place, chunk in enumerate(asked.prompt.chunks):
        if chunk.type != TEXT:
            return (
                f"prompt.chunks[{place}] is of type {chunk.type}: only text is sampled and "
                f"trained. Send chunks of type {TEXT}"
            )
    count = len(tokens(asked))
    if not count:
        return "prompt has no tokens: send at least one"
    last = asked.prompt_logprobs_last_n
    if last is not None and not (asked.prompt_logprobs and 1 <= last <= max(count - 1, 1)):
        return (
            f"prompt_logprobs_last_n is {last}: it needs prompt_logprobs, and 1 to {count - 1} for "
            f"a prompt of {count} tokens"
        )
    if asked.topk_prompt_logprobs and not asked.prompt_logprobs:
        return "topk_prompt_logprobs needs prompt_logprobs: set include_prompt_logprobs"
    return ""


def tokens(asked: Sample) -> list[int]:
    """The prompt."""
    return [token for chunk in asked.prompt.chunks for token in chunk.tokens]


def completion(asked: Sample, context: int) -> dict[str, Any]:
    """The body of OpenAI's completion route, but for ``model``.

    Args:
        asked: a request without a problem.
        context: the longest of prompt and answer together, in tokens.
    """
    params = asked.sampling_params
    body: dict[str, Any] = {
        "prompt": tokens(asked),
        "n": asked.num_samples,
        # Without a limit Tinker's clients sample to the end of the context, and vLLM 16 tokens.
        "max_tokens": context if params.max_tokens is None else max(params.max_tokens, 1),
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "logprobs": asked.topk_sample_logprobs,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if params.seed is not None:
        body["seed"] = params.seed
    if asked.prompt_logprobs:
        body["prompt_logprobs"] = asked.topk_prompt_logprobs
    return body | _stops(params.stop)


def response(asked: Sample, answer: Any) -> bytes:
    """The rollout's answer as Tinker's SampleResponse.

    Raises:
        UnreadableError: it is not the completion that was asked for.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        if len(choices) != asked.num_samples:
            raise UnreadableError(f"it has {len(choices)} choices of {asked.num_samples}")
        message = SampleResponse(sequences=[_sequence(asked, choice) for choice in choices])
        if asked.prompt_logprobs:
            _add_prompt(asked, choices[0]["prompt_logprobs"], message)
        return bytes(message.SerializeToString())
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UnreadableError(f"it is no completion: {error!r}"[:400]) from error


def _stops(stop: str | Sequence[str] | Sequence[int] | None) -> dict[str, Any]:
    if stop is None:
        return {}
    if isinstance(stop, str):
        return {"stop": [stop]}
    if not stop:
        return {"ignore_eos": True}
    if isinstance(stop[0], int):
        return {"stop_token_ids": list(stop)}
    return {"stop": list(stop)}


def _sequence(asked: Sample, choice: Mapping[str, Any]) -> SampledSequence:
    drawn = array("i", choice["token_ids"])
    scored = choice["logprobs"]
    logprobs = array("f", [float(value) for value in scored["token_logprobs"]])
    if len(drawn) != len(logprobs):
        raise UnreadableError(f"it has {len(drawn)} tokens and {len(logprobs)} log-probs")
    if asked.sampling_params.max_tokens == 0:
        drawn, logprobs = drawn[:0], logprobs[:0]
    message = SampledSequence(
        stop_reason=_STOPS[choice["finish_reason"]],
        tokens=drawn.tobytes(),
        logprobs=logprobs.tobytes(),
    )
    if asked.topk_sample_logprobs:
        rows = [
            [(int(token.removeprefix(_TOKEN)), value) for token, value in (row or {}).items()]
            for row in scored["top_logprobs"][: len(drawn)]
        ]
        message.topk_sampled_logprobs.CopyFrom(_topk(rows, asked.topk_sample_logprobs))
    return message


def _add_prompt(asked: Sample, rows: Sequence[Any], message: SampleResponse) -> None:
    """Log-probs of the prompt; of its first token, and before ``last_n``, there are none."""
    given = tokens(asked)
    if len(rows) != len(given):
        raise UnreadableError(f"it has {len(rows)} log-probs of a prompt of {len(given)} tokens")
    last = asked.prompt_logprobs_last_n
    first = 1 if last is None else max(1, len(given) - last)
    own = [
        math.nan if place < first else float(rows[place][str(token)]["logprob"])
        for place, token in enumerate(given)
    ]
    message.prompt_logprobs = array("f", own).tobytes()
    if asked.topk_prompt_logprobs:
        best = [
            []
            if place < first
            else [(int(token), entry["logprob"]) for token, entry in row.items()]
            for place, row in enumerate(rows)
        ]
        message.topk_prompt_logprobs.CopyFrom(_topk(best, asked.topk_prompt_logprobs))


def _topk(rows: Sequence[Sequence[tuple[int, float]]], k: int) -> TopkLogprobs:
    """The ``k`` most likely of each row; vLLM adds the token itself where it is not among them."""
    ids, values = array("i"), array("f")
    for row in rows:
        best = sorted(row, key=lambda entry: -entry[1])[:k]
        missing = k - len(best)
        ids.extend([*(token for token, _ in best), *[NO_TOKEN] * missing])
        values.extend([*(float(value) for _, value in best), *[NO_LOGPROB] * missing])
    return TopkLogprobs(token_ids=ids.tobytes(), logprobs=values.tobytes(), k=k, length=len(rows))
