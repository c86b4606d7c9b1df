"""Who did what to which object: one JSON line for each act, of logger ``espalier.audit``.

A line is written when the request ends, also for one that was refused: ``action``, ``user``,
``groups``, ``api_key`` (its id), ``target`` (kind, namespace/name), ``before``, ``after``,
``outcome`` (Done, Refused, BrokenOff, Failed), ``reason`` of a refusal, ``status``, ``request_id``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Concatenate, Literal, ParamSpec, TypeVar

from aiohttp import web

from espalier.gateway.access.auth import User
from espalier.gateway.problems import CLIENT_GONE
from espalier.gateway.world.world import NamespacedName
from espalier.telemetry import spans

# What is audited. ``Train`` is a step of the optimizer, and every other command that is refused.
Action = Literal["Sample", "Train", "Fork", "MoveHead", "Evaluate", "Save", "Unsave", "Download"]
LOGGER = "espalier.audit"
# Characters of a name that a caller gave, which may be no name at all.
MOST = 300
_SPANS = {
    "TrainableModel": spans.MODEL,
    "TrainingRun": spans.RUN,
    "Checkpoint": spans.CHECKPOINT,
    "CheckpointHead": spans.HEAD,
}

_log = logging.getLogger(LOGGER)

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")
Method = Callable[Concatenate[S, web.Request, P], Awaitable[R]]


@dataclass
class Act:
    """What a request does; its handler fills in what it learns.

    ``told``: whether it is written where nothing is refused. ``awaited``: a 408 says that it takes
    longer, and refuses nothing. ``done_to``: the object of ``target``, once it is known.
    """

    action: Action
    target: str = ""
    before: str = ""
    after: str = ""
    told: bool = True
    awaited: bool = False
    done_to: tuple[str, NamespacedName] | None = None

    def of(self, kind: str, name: NamespacedName, *, before: str = "", after: str = "") -> None:
        """Says which object it is done to, and what changes of it."""
        self.target, self.before, self.after = f"{kind} {name}", before, after
        self.done_to = (kind, name)


ACT: web.RequestKey[Act] = web.RequestKey("act", Act)
# Set once the caller is known.
CALLER: web.RequestKey[User] = web.RequestKey("caller", User)
# Why it was refused.
REASON: web.RequestKey[str] = web.RequestKey("reason", str)


def audited(action: Action) -> Callable[[Method[S, P, R]], Method[S, P, R]]:
    """Has a handler's requests audited; it finds its act at ``request[ACT]``."""

    def wrap(method: Method[S, P, R]) -> Method[S, P, R]:
        @functools.wraps(method)
        async def handle(self: S, request: web.Request, /, *more: P.args, **named: P.kwargs) -> R:
            request[ACT] = Act(action)
            return await method(self, request, *more, **named)

        return handle

    return wrap


def write(request: web.Request, request_id: str, status: int) -> None:
    """Writes the line of a request that has ended; nothing for one that is not audited."""
    act = request.get(ACT)
    if act is None:
        return
    outcome = "Done" if act.awaited and status == HTTPStatus.REQUEST_TIMEOUT else _outcome(status)
    if outcome == "Done" and not act.told:
        return
    user = request.get(CALLER)
    _log.info(
        "audit",
        extra={
            "request_id": request_id,
            "action": act.action,
            "user": user.name if user is not None else "",
            "groups": user.groups if user is not None else (),
            "api_key": user.api_key if user is not None else "",
            "target": act.target[:MOST],
            "before": act.before[:MOST],
            "after": act.after[:MOST],
            "outcome": outcome,
            "reason": request.get(REASON, ""),
            "status": status,
        },
    )


def noted(request: web.Request) -> dict[str, str]:
    """Which object a request is about, for its span."""
    act = request.get(ACT)
    if act is None or act.done_to is None:
        return {}
    kind, name = act.done_to
    return {spans.NAMESPACE: name.namespace, _SPANS[kind]: name.name}


def _outcome(status: int) -> str:
    if status < HTTPStatus.BAD_REQUEST:
        return "Done"
    if status == CLIENT_GONE:
        return "BrokenOff"
    return "Refused" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "Failed"
