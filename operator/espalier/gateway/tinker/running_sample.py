"""What the gateway holds of one sample while it is on its way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pydantic_core import from_json, to_json

from espalier.gateway.access.auth import User
from espalier.gateway.access.byte_budget import Hold
from espalier.gateway.tinker import sampling
from espalier.gateway.tinker.bodies import Chunk, Prompt, Sample, SamplingParams
from espalier.gateway.tinker.names import Sampler
from espalier.gateway.world.routing import NotReady
from espalier.untrusted import read_json


@dataclass
class Running:
    """One sample on its way.

    Attributes:
        user: who asked for it.
        sampler: what is sampled.
        brief: of the request what its answer is read by, but for the prompt.
        completion: the body for a rollout, as JSON; empty once the sample has ended.
        room: of the completion.
        kept: bytes of the result that is kept, if it is.
        waits: for what.
        open: polls that wait for it.
        idle: ends it when nobody has asked for it for long.
    """

    user: User
    sampler: Sampler
    brief: Sample
    completion: bytes
    room: Hold
    task: asyncio.Task[bytes] = field(init=False)
    kept: int | None = None
    waits: NotReady | None = None
    open: int = 0
    idle: asyncio.TimerHandle | None = None

    def address(self, adapter: str, context: int) -> None:
        """Makes the completion one of an adapter, whose longest text has so many tokens.

        There is no other copy of it: tokens take much more room than their text.
        """
        completion = from_json(self.completion) | {"model": adapter}
        if self.brief.sampling_params.max_tokens is None:
            completion["max_tokens"] = context
        self.completion = to_json(completion)

    def response(self, answer: bytes) -> bytes:
        """The SampleResponse of a rollout's answer; UnreadableError if it is none."""
        tokens = from_json(self.completion)["prompt"] if self.brief.prompt_logprobs else []
        prompt = Prompt(chunks=[Chunk(type=sampling.TEXT, tokens=tokens)])
        asked = self.brief.model_copy(update={"prompt": prompt})
        return sampling.response(asked, read_json(answer))


def brief(request: Sample) -> Sample:
    """Of a request what its answer is read by, but for the prompt: a few bytes of any request."""
    return Sample(
        sampling_session_id="",
        seq_id=0,
        num_samples=request.num_samples,
        prompt=Prompt(chunks=[]),
        sampling_params=SamplingParams(max_tokens=request.sampling_params.max_tokens),
        prompt_logprobs=request.prompt_logprobs,
        topk_prompt_logprobs=request.topk_prompt_logprobs,
        topk_sample_logprobs=request.topk_sample_logprobs,
        prompt_logprobs_last_n=request.prompt_logprobs_last_n,
    )
