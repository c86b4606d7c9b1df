"""GatewayClient: one method for each route that the gateway has for a model."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from pydantic import ValidationError
from pydantic_core import from_json

from espalier.api.sampled import sampled
from espalier.api.wire.barren_rounds import MESSAGE_CHARS, BarrenRounds
from espalier.api.wire.base import Wire
from espalier.api.wire.batch_left import BatchLeft, Held
from espalier.api.wire.declared import Declared
from espalier.api.wire.evaluation import EvaluationRequest
from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardBackwardResult,
    ForwardRequest,
    ForwardResult,
    LossList,
)
from espalier.api.wire.headers import CHECKPOINT, IDEMPOTENCY_KEY, TERM
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import TrainerState
from espalier.client.answers import (
    CHECKPOINTS,
    FORWARD,
    FORWARD_BACKWARD,
    STATE,
    STEP,
    CheckpointResponse,
    CommittedStep,
    RunView,
    read_model,
)
from espalier.client.completion import Completion, read_completions
from espalier.client.errors import MalformedAnswerError
from espalier.client.json_http import Answer, Patience, Token, Transport
from espalier.client.ticket import Ticket

Message = Mapping[str, str]
_Result = TypeVar("_Result")


class GatewayClient:
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
        self, request: ForwardBackwardRequest, *, term: int = 0
    ) -> ForwardBackwardResult:
        """Adds gradients; under another live term than ``term`` (if above 0) StaleTermError."""
        return await self.send(self._ticket("forward-backward", request, term), FORWARD_BACKWARD)

    async def forward(self, request: ForwardRequest, *, term: int = 0) -> ForwardResult:
        """Log-probs of the inputs, for a loss that the caller computes."""
        return await self.send(self._ticket("forward", request, term), FORWARD)

    async def backward(self, request: BackwardRequest, *, term: int = 0) -> ForwardBackwardResult:
        """Adds the gradients of the caller's loss."""
        return await self.send(self._ticket("backward", request, term), FORWARD_BACKWARD)

    async def zero_grad(self, *, term: int = 0) -> TrainerState:
        """Drops accumulated gradients."""
        return await self.send(self._ticket("zero-grad", None, term), STATE)

    async def optim_step(self, request: OptimStepRequest, *, term: int = 0) -> CommittedStep:
        """One optimizer step; returns when the head serves its checkpoint, or will not."""
        return await self.send(self._ticket("optim-step", request, term), STEP)

    async def send(
        self,
        ticket: Ticket,
        read: Callable[[Answer], _Result],
        *,
        waits: Callable[[Problem], None] | None = None,
    ) -> _Result:
        """Sends a command until it is answered; ``waits`` is told why it is not yet."""
        headers = {IDEMPOTENCY_KEY: ticket.key}
        if ticket.term:
            headers[TERM] = str(ticket.term)
        path = f"/v1/models/{quote(ticket.model)}/train/{ticket.command}"
        return read(await self._transport.call("POST", path, ticket.body, headers, waits=waits))

    async def state(self) -> TrainerState:
        """Where the trainer stands."""
        answer = await self._transport.call("GET", self._route("state"))
        return STATE(answer)

    async def batch(self) -> BatchLeft | None:
        """What is left of the batch that the trainer's latest step came from."""
        answer = await self._transport.call("GET", self._route("batch"))
        return read_model(answer.body, Held).batch

    async def declared(self) -> Declared | None:
        """What the run in Git binds its client's commands to; None for nothing."""
        answer = await self._transport.call("GET", self._route("declared"))
        return read_model(answer.body, Declared) if from_json(answer.body) else None

    async def losses(self) -> list[str]:
        """Names of the losses that ``forward_backward`` takes."""
        answer = await self._transport.call("GET", self._route("losses"))
        return read_model(answer.body, LossList).losses

    async def checkpoints(self) -> list[CheckpointResponse]:
        """The checkpoints of the model, oldest first."""
        answer = await self._transport.call("GET", f"/v2/models/{quote(self.model)}/checkpoints")
        try:
            return CHECKPOINTS.validate_json(answer.body)
        except ValidationError as error:
            raise MalformedAnswerError(f"the answer lists no checkpoints: {error}") from error

    async def set_head(self, checkpoint_id: str) -> None:
        """Moves the head to a checkpoint: what is served, and where training goes on from."""
        body = json.dumps({"checkpoint_id": checkpoint_id})
        await self._transport.call("PUT", f"/v2/models/{quote(self.model)}/head", body)

    async def run(self, namespace: str, name: str) -> RunView:
        """A TrainingRun as of now."""
        answer = await self._transport.call("GET", f"/v1/runs/{quote(namespace)}/{quote(name)}")
        return read_model(answer.body, RunView)

    async def record_evaluation(
        self, namespace: str, checkpoint: str, name: str, metrics: Mapping[str, float], tasks: int
    ) -> None:
        """Records figures of a Checkpoint: ``eval/<name>/<metric>`` of its status.

        Needs the verb ``evaluate`` on checkpoints. Said twice, the later counts.
        """
        where = f"checkpoints/{quote(namespace)}/{quote(checkpoint)}"
        await self._record(where, name, metrics, tasks)

    async def record_base_evaluation(
        self, run: tuple[str, str], name: str, metrics: Mapping[str, float], tasks: int
    ) -> None:
        """Records figures of the base that a run starts from, in the run's ``baseEvaluations``.

        ``run`` is its namespace and name. Needs the verb ``update`` on trainingruns.
        """
        where = f"runs/{quote(run[0])}/{quote(run[1])}"
        await self._record(where, name, metrics, tasks)

    async def record_barren_rounds(
        self, run: tuple[str, str], step: int, rounds: int, why: Problem
    ) -> None:
        """Records in the run's ``barrenRounds`` that rounds of sampling for a step taught nothing.

        ``run`` is its namespace and name. Needs the verb ``update`` on trainingruns.
        """
        request = BarrenRounds(
            step=step, rounds=rounds, reason=why.reason, message=why.text[:MESSAGE_CHARS]
        )
        where = f"/v1/runs/{quote(run[0])}/{quote(run[1])}/barren-rounds"
        await self._transport.call("PUT", where, request.model_dump_json())

    async def _record(
        self, where: str, name: str, metrics: Mapping[str, float], tasks: int
    ) -> None:
        request = EvaluationRequest(name=name, tasks=tasks, metrics=dict(metrics))
        await self._transport.call("POST", f"/v1/{where}/evaluations", request.model_dump_json())

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        max_tokens: int,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """Completions of a chat with tokens and log-probs.

        Args:
            messages: the chat, each ``{"role", "content"}``.
            checkpoint: name of a Checkpoint, ``base``, or empty for what the head serves.
            count: number of completions; 1 when the temperature is 0.
            temperature: 0 is greedy.
            max_tokens: of one completion.
            extra: further fields of the request, such as ``top_p`` or ``stop``.
        """
        body = {
            **(extra or {}),
            "model": f"{self.model}@{checkpoint}" if checkpoint else self.model,
            "messages": [dict(message) for message in messages],
            "n": count,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "logprobs": True,
            "return_token_ids": True,
        }
        answer = await self._transport.call(
            "POST", "/v1/chat/completions", json.dumps(body), computed_anew=True
        )
        sampled_by = answer.headers.get(CHECKPOINT, "")
        return read_completions(answer.body, count, sampled(body), sampled_by)

    async def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, without any that the tokenizer would put around it."""
        body = {
            "model": self.model,
            "prompt": text,
            "max_tokens": 1,
            "return_token_ids": True,
            "add_special_tokens": False,
        }
        answer = await self._transport.call("POST", "/v1/completions", json.dumps(body))
        try:
            tokens: list[int] = from_json(answer.body)["choices"][0]["prompt_token_ids"]
        except (ValueError, LookupError) as error:
            raise MalformedAnswerError(f"the answer holds no prompt_token_ids: {error}") from error
        return tokens

    def _ticket(self, command: str, request: Wire | None, term: int) -> Ticket:
        self._seq += 1
        body = request.model_dump_json() if request is not None else "{}"
        key = f"{self._session}/{self._seq}"
        return Ticket(model=self.model, command=command, key=key, body=body, term=term)

    def _route(self, command: str) -> str:
        return f"/v1/models/{quote(self.model)}/train/{command}"
