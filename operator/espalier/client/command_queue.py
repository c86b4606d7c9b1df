"""Submits commands in order, keeps each until it is answered, and gives it to who waits."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from espalier.api.wire.base import Wire
from espalier.api.wire.problem import Problem
from espalier.client import answers
from espalier.client.call import Call, Portal
from espalier.client.errors import ConfigurationError, DeadlineError
from espalier.client.gateway import GatewayClient
from espalier.client.json_http import Answer, Patience, Token
from espalier.client.kept_rollouts import Kept
from espalier.client.ticket import Journal, Ticket

GATEWAY_URL = "ESPALIER_GATEWAY_URL"
TOKEN = "ESPALIER_TOKEN"
TOKEN_FILE = "ESPALIER_TOKEN_FILE"

T = TypeVar("T")


class CommandClient:
    """Calls to one model's trainer, from any thread or event loop. See ``TrainingClient``."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        token: Token | None = None,
        patience: Patience | None = None,
        journal: Path | None = None,
    ) -> None:
        url, bearer = base_url or os.environ.get(GATEWAY_URL, ""), token or _token()
        if not url:
            raise ConfigurationError(f"where is the gateway? Set {GATEWAY_URL} or give base_url")
        if not bearer:
            raise ConfigurationError(
                f"who asks? Set {TOKEN} or {TOKEN_FILE}, or give token; for example "
                "`kubectl create token NAME --audience espalier-gateway`"
            )
        self.model = model
        self._gateway = GatewayClient(url, model, bearer, patience=patience)
        self._journal = Journal(journal) if journal is not None else None
        self._session = uuid.uuid4().hex
        self._kept = Kept()
        self._submitting = threading.Lock()
        self._seq = 0
        self._last: Call[Any] | None = None
        self._portal = Portal(f"espalier-{model}")
        self._portal.submit(self._gateway.__aenter__()).result()

    def close(self) -> None:
        """Ends the client. Commands that were sent stay sent; those in a journal stay there."""
        self._portal.submit(self._gateway.__aexit__(None, None, None)).result()
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- calls that outlive their process -------------------------------------------------------

    def unanswered(self) -> list[Ticket]:
        """Commands in the journal whose answer was never seen, oldest first."""
        return self._journal.unanswered(self.model) if self._journal is not None else []

    def resume(self, ticket: Ticket) -> Call[Any]:
        """Asks again for the answer of a command; it is applied now if it never was."""
        read: Callable[[Answer], Any] = _ANSWERS[ticket.command]
        return self._send(ticket, read)

    def _command(self, command: str, request: Wire | None, read: Callable[[Answer], T]) -> Call[T]:
        body = request.model_dump_json() if request is not None else "{}"
        with self._submitting:
            self._seq += 1
            key = f"{self._session}/{self._seq}"
            ticket = Ticket(model=self.model, command=command, key=key, body=body)
            call = self._send(ticket, read, self._last)
            self._last = call
        return call

    def _send(
        self, ticket: Ticket, read: Callable[[Answer], T], earlier: Call[Any] | None = None
    ) -> Call[T]:
        call: Call[T] = Call(ticket.key, earlier)
        if self._journal is not None:
            self._journal.write(ticket)

        async def work(call: Call[T]) -> T:
            call.progress = replace(call.progress, attempts=1)
            try:
                answer = await self._gateway.send(ticket, read, waits=lambda why: _note(call, why))
            except DeadlineError:
                # No answer: whether it was applied is not known, so the journal keeps it.
                raise
            except Exception:
                self._answered(ticket)
                raise
            self._answered(ticket)
            return answer

        call.start(self._portal, work)
        return call

    def _answered(self, ticket: Ticket) -> None:
        if self._journal is not None:
            self._journal.remove(ticket)

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Call[T]:
        """A call that is no command of its own: a reading, or several calls as one."""
        call: Call[T] = Call("")
        call.start(self._portal, lambda _: work())
        return call


_ANSWERS: dict[str, Callable[[Answer], Any]] = {
    "forward-backward": answers.FORWARD_BACKWARD,
    "forward": answers.FORWARD,
    "backward": answers.FORWARD_BACKWARD,
    "zero-grad": answers.STATE,
    "optim-step": answers.STEP,
}


def _note(call: Call[Any], why: Problem) -> None:
    attempts = call.progress.attempts + 1
    call.progress = replace(call.progress, attempts=attempts, reason=why.reason, detail=why.detail)


def _token() -> Token | None:
    if token := os.environ.get(TOKEN):
        return token
    file = os.environ.get(TOKEN_FILE)
    return Path(file) if file else None
