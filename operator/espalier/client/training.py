"""TrainingClient: train and sample one model through the gateway."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire import (
    EPOCH,
    IDEMPOTENCY_KEY,
    PROMOTION,
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardBackwardResult,
    ForwardRequest,
    ForwardResult,
    LossList,
    OptimStepRequest,
    OptimStepResult,
    TrainerState,
    Wire,
)
from espalier.client.completion import Completion, read_completions
from espalier.client.errors import MalformedAnswerError
from espalier.client.transport import Patience, Token, Transport

Message = Mapping[str, str]
_Result = TypeVar("_Result", bound=BaseModel)


class RunView(BaseModel):
    """A TrainingRun as the gateway shows it to who drives it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uid: str
    model: str
    spec: TrainingRunSpec
    epoch: int
    suspended: bool
    paused: bool


@dataclass(frozen=True)
class Committed:
    """A committed step. ``promotion`` is Served, Pinned, Gated or Timeout."""

    result: OptimStepResult
    promotion: str


class TrainingClient:
    """Commands are sent once per key: a lost answer is asked for again, never applied twice.

    Args:
        base_url: of the gateway, without ``/v1``.
        model: slug of the model: its name, or ``namespace/name``.
        token: a Kubernetes or gateway token, its file, or a function that gives it.
        patience: deadline, timeout of an attempt, delays.
    """

    def __init__(
        self, base_url: str, model: str, token: Token, *, patience: Patience | None = None
    ) -> None:
        self.model = model
        self._transport = Transport(base_url, token, patience or Patience())
        self._session = uuid.uuid4().hex
        self._seq = 0

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def forward_backward(
        self, request: ForwardBackwardRequest, *, epoch: int = 0
    ) -> ForwardBackwardResult:
        """Adds gradients; under another live epoch than ``epoch`` (if above 0) StaleEpochError."""
        return await self._command("forward-backward", request, ForwardBackwardResult, epoch)

    async def forward(self, request: ForwardRequest, *, epoch: int = 0) -> ForwardResult:
        """Log-probs of the inputs, for a loss that the caller computes."""
        return await self._command("forward", request, ForwardResult, epoch)

    async def backward(self, request: BackwardRequest, *, epoch: int = 0) -> ForwardBackwardResult:
        """Adds the gradients of the caller's loss."""
        return await self._command("backward", request, ForwardBackwardResult, epoch)

    async def zero_grad(self, *, epoch: int = 0) -> TrainerState:
        """Drops accumulated gradients."""
        return await self._command("zero-grad", None, TrainerState, epoch)

    async def optim_step(self, request: OptimStepRequest, *, epoch: int = 0) -> Committed:
        """One optimizer step; returns when the head serves its checkpoint, or will not."""
        answer = await self._transport.call(
            "POST", self._route("optim-step"), request.model_dump_json(), self._headers(epoch)
        )
        result = _read(answer.body, OptimStepResult)
        return Committed(result, answer.headers.get(PROMOTION, ""))

    async def state(self) -> TrainerState:
        """Where the trainer stands."""
        answer = await self._transport.call("GET", self._route("state"))
        return _read(answer.body, TrainerState)

    async def losses(self) -> list[str]:
        """Names of the losses that ``forward_backward`` takes."""
        answer = await self._transport.call("GET", self._route("losses"))
        return _read(answer.body, LossList).losses

    async def run(self, namespace: str, name: str) -> RunView:
        """A TrainingRun as of now."""
        answer = await self._transport.call("GET", f"/v1/runs/{quote(namespace)}/{quote(name)}")
        return _read(answer.body, RunView)

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        max_tokens: int,
    ) -> list[Completion]:
        """Completions of a chat with tokens and log-probs.

        Args:
            messages: the chat, each ``{"role", "content"}``.
            checkpoint: name of a Checkpoint, ``base``, or empty for what the head serves.
            count: number of completions; 1 when the temperature is 0.
            temperature: 0 is greedy.
            max_tokens: of one completion.
        """
        body = {
            "model": f"{self.model}@{checkpoint}" if checkpoint else self.model,
            "messages": [dict(message) for message in messages],
            "n": count,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "logprobs": True,
            "return_token_ids": True,
        }
        answer = await self._transport.call("POST", "/v1/chat/completions", json.dumps(body))
        return read_completions(answer.body, count)

    async def _command(
        self, command: str, request: Wire | None, result: type[_Result], epoch: int
    ) -> _Result:
        body = request.model_dump_json() if request is not None else "{}"
        answer = await self._transport.call(
            "POST", self._route(command), body, self._headers(epoch)
        )
        return _read(answer.body, result)

    def _headers(self, epoch: int) -> dict[str, str]:
        self._seq += 1
        headers = {IDEMPOTENCY_KEY: f"{self._session}/{self._seq}"}
        if epoch:
            headers[EPOCH] = str(epoch)
        return headers

    def _route(self, command: str) -> str:
        return f"/v1/models/{quote(self.model)}/train/{command}"


def _read(body: bytes, kind: type[_Result]) -> _Result:
    try:
        content: Any = json.loads(body)
        return kind.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise MalformedAnswerError(f"the answer is not a {kind.__name__}: {error}") from error
