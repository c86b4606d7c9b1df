"""Completions as training needs them: tokens in, tokens out, and the sampler's log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.sampled import Sampled
from espalier.api.wire.trajectory import TrajectorySample
from espalier.client.errors import MalformedAnswerError


class _Token(BaseModel):
    model_config = ConfigDict(extra="ignore")

    logprob: float


class _Logprobs(BaseModel):
    model_config = ConfigDict(extra="ignore")

    content: list[_Token] | None = None


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")

    index: int = 0
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _ChatAnswer(BaseModel):
    model_config = ConfigDict(extra="ignore")

    choices: list[_Choice]


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        text: what the model wrote, without special tokens, thoughts and tool calls that the
            rollout's parsers took out (``spec.rollout.reasoningParser``, ``toolCallParser``).
        prompt_token_ids: the rendered prompt, (P,).
        token_ids: the sampled tokens, (T,); an end-of-sequence token is among them.
        logprobs: natural-log probability of each sampled token, (T,).
        finish_reason: stop, tool_calls, or length when it was cut at max_tokens.
        reasoning: what the model thought.
        tool_calls: in OpenAI's form.
        checkpoint: name of the Checkpoint that sampled it, or ``base``; empty if that is not known.
        sampled: at which temperature, and what else changed the distribution; None where nobody
            said, which the trainer takes for temperature 1 unless it is told another.
    """

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    checkpoint: str = ""
    sampled: Sampled | None = None

    @property
    def truncated(self) -> bool:
        """True when the completion was cut, not ended."""
        return self.finish_reason == "length"

    @property
    def shown(self) -> str:
        """What the model wrote, for people: the text, and each call of a tool on a line."""
        functions = [made.get("function") or {} for made in self.tool_calls]
        calls = [f"{one.get('name', '')}({one.get('arguments', '')})" for one in functions]
        return "\n".join([*([self.text] if self.text else []), *calls])


def read_completions(
    body: bytes, count: int, drawn: Sampled | None = None, checkpoint: str = ""
) -> list[Completion]:
    """The completions of a chat answer, by index.

    ``drawn`` is how they were asked for, ``checkpoint`` what sampled them.

    Raises:
        MalformedAnswerError: not ``count`` choices, or tokens and log-probs that do not match.
    """
    try:
        answer = _ChatAnswer.model_validate_json(body)
    except ValueError as error:
        raise MalformedAnswerError(f"not a chat completion: {error}") from error
    if len(answer.choices) != count:
        raise MalformedAnswerError(f"{len(answer.choices)} completions came, {count} were asked")
    ordered = sorted(answer.choices, key=lambda choice: choice.index)
    return [_completion(choice, drawn, checkpoint) for choice in ordered]


def _completion(choice: _Choice, drawn: Sampled | None, checkpoint: str) -> Completion:
    tokens = choice.token_ids
    content = choice.logprobs.content if choice.logprobs else None
    if tokens is None or choice.prompt_token_ids is None or content is None:
        raise MalformedAnswerError(
            "a choice lacks token_ids, prompt_token_ids or logprobs: is this an Espalier gateway?"
        )
    if len(content) != len(tokens):
        raise MalformedAnswerError(f"{len(tokens)} tokens came with {len(content)} log-probs")
    return Completion(
        text=choice.message.content or "",
        prompt_token_ids=tuple(choice.prompt_token_ids),
        token_ids=tuple(tokens),
        logprobs=tuple(token.logprob for token in content),
        finish_reason=choice.finish_reason or "",
        reasoning=choice.message.reasoning or "",
        tool_calls=tuple(choice.message.tool_calls),
        checkpoint=checkpoint,
        sampled=drawn,
    )


def sample_of(
    turn: Completion, advantages: Sequence[float] | None = None, *, masked: bool = False
) -> TrajectorySample:
    """The completion as the trainer takes it, with how it was sampled.

    ``masked``: its tokens are not trained on, its reward counts in its group.
    """
    drawn = turn.sampled
    return TrajectorySample(
        prompt_token_ids=list(turn.prompt_token_ids),
        output_token_ids=list(turn.token_ids),
        output_logprobs=list(turn.logprobs),
        advantages=list(advantages) if advantages is not None else None,
        temperature=drawn.temperature if drawn is not None else None,
        shifted_by=list(drawn.shifted_by) if drawn is not None else [],
        checkpoint=turn.checkpoint or None,
        masked=masked,
    )
