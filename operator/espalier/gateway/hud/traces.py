"""Rollouts of HUD's client by trace id: what it reports of them, and what was sampled for them.

Traces live with the trainers of the models, where training resolves their ids; for a model whose
trainer is not there they are held here until it is (``outbox``). A report that names no model goes
to every trainer that its caller may train with.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from espalier.api.sampled import Sampled
from espalier.core.api_keys import SCOPES
from espalier.gateway.access.auth import User
from espalier.gateway.access.byte_budget import ByteBudget
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.request_body import read_bytes
from espalier.gateway.hud.trace_keepers import Keeper, TraceKeepers
from espalier.gateway.hud.trace_outbox import PERCENT_OF_ONE, HeldRequest, Put, TraceOutbox
from espalier.gateway.problems import RefusalError, not_ready, over
from espalier.gateway.world.routing import find_model
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.telemetry import spans
from espalier.untrusted import UnreadableError, read_json

TRACE = "Trace-Id"
# Of an answer: whether its turn or report is Kept with a trainer, Held until there is one, NotKept.
TRACE_KEPT = "Espalier-Trace"
KEPT, HELD, NOT_KEPT = "Kept", "Held", "NotKept"
# Seconds between two checks whether a trainer for the waiting traces is running.
LOOK_SECONDS = 2.0
_RUN = "Start a run that trains the model: its trainer takes what is held. Then send it again"
_ID = "{id:[0-9a-fA-F-]{32,36}}"
_log = logging.getLogger(__name__)


class TraceRoutes:
    """Handlers of ``/v2/trace``, and the recorder of completions."""

    def __init__(
        self,
        callers: Callers,
        watch: WorldWatch,
        keepers: TraceKeepers,
        answers: ByteBudget,
        outbox: TraceOutbox,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._keepers = keepers
        self._answers = answers
        self._outbox = outbox

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers the routes."""
        router.add_post(f"/v2/trace/job/{_ID}/enter", self.report)
        router.add_post(f"/v2/trace/{_ID}/enter", self.report)
        router.add_post(f"/v2/trace/{_ID}/exit", self.report)
        router.add_get(f"/v2/trace/{_ID}", self.get)
        router.add_post(f"/v3/api/trace/{_ID}/telemetry-upload", self.drop_spans)

    async def report(self, request: web.Request) -> web.Response:
        """Keeps a report with every trainer that it may concern; one is enough.

        Where one of these is not there, it is held for it.
        """
        user = await self._callers.caller(request, "sample", "train")
        # This refuses a caller who may train no model before it reads the body.
        await self._keepers.all(user, "")
        body = await read_bytes(request)
        trace, path = request.match_info["id"], request.path.removeprefix("/v2/trace")
        model = self._reported(_named_model(body), trace)
        may = model is not None and await self._keepers.keeper(user, model) is not None
        if model is not None and may and not await self._catch_up(user, model, trace):
            return _held(user, self._hold(user, trace, path, body, model))
        keepers = await self._keepers.all(user, str(model) if model is not None else "")
        there = [keeper for keeper in keepers if keeper.pod is not None]
        with self._answers.hold() as hold:
            calls = (self._keepers.call("POST", keeper, path, hold, body) for keeper in there)
            answers = await asyncio.gather(*calls)
            kept = any(status == web.HTTPOk.status_code for status, _ in answers)
            # An end is of one trace, which who has it has kept; a beginning may be for others too.
            ended = kept and path.endswith("/exit")
            if len(there) < len(keepers) and not ended:
                outcome = self._hold(user, trace, path, body, model)
                if not kept:
                    return _held(user, outcome)
            return _best(answers)

    def _reported(self, slug: str, trace: str) -> NamespacedName | None:
        """The model that a report is about: named, or known of the trace's held turns."""
        named = find_model(self._watch.world, slug) if slug else None
        known = self._outbox.model_of(_canonical(trace))
        return named if isinstance(named, NamespacedName) else known

    async def _catch_up(self, user: User, model: NamespacedName, trace: str) -> bool:
        """Sends the waiting parts of the trace; True if none waits any more."""
        outbox = self._outbox
        if outbox.model_of(_canonical(trace)) != model:
            return True
        keeper = await self._keepers.keeper(user, model)
        if keeper is not None and keeper.pod is not None:
            await self.hand_over(model)
        return outbox.model_of(_canonical(trace)) != model

    async def get(self, request: web.Request) -> web.Response:
        """Every part of a trace that a trainer keeps."""
        user = await self._callers.caller(request, "read", "train")
        path = request.path.removeprefix("/v2/trace")
        keepers = [k for k in await self._keepers.all(user, "") if k.pod is not None]
        if not keepers:
            raise RefusalError(
                404, "TraceNotFound", "no trainer that keeps traces is there to be asked"
            )
        with self._answers.hold() as hold:
            answers = await asyncio.gather(
                *(self._keepers.call("GET", k, path, hold) for k in keepers)
            )
            return _best(answers)

    async def drop_spans(self, request: web.Request) -> web.Response:
        """Takes HUD's telemetry and keeps none of it: see docs/guides/hud-client.md."""
        await self._callers.caller(request, *SCOPES)
        return web.Response(status=204)

    async def record(
        self, keeper: Keeper, trace: str, answer: bytes, *, drawn: Sampled, checkpoint: str
    ) -> str:
        """Keeps the turn that a checkpoint sampled, in vLLM's form: Kept, Held, or NotKept.

        The caller gets its answer only afterwards, so that a trace it has seen to its end is whole.
        """
        sample = _sample(answer, drawn)
        if sample is None:
            return NOT_KEPT
        if checkpoint:
            sample["checkpoint"] = checkpoint
        path = f"/{trace}/samples"
        caught_up = await self._catch_up(keeper.user, keeper.model, trace)
        if keeper.pod is None or not caught_up:
            body = json.dumps(sample).encode()
            put = self._hold(keeper.user, trace, path, body, keeper.model)
            return HELD if put == "Held" else NOT_KEPT
        with self._answers.hold() as hold:
            try:
                status, _ = await self._keepers.call(
                    "POST", keeper, path, hold, json.dumps(sample).encode()
                )
            except RefusalError as error:
                _log.warning("sample not kept", extra={"trace": trace, "error": str(error)})
                return NOT_KEPT
        if status != 200:
            _log.warning("sample not kept", extra={"trace": trace, "status": status})
        return KEPT if status == 200 else NOT_KEPT

    async def hand_over(self, model: NamespacedName) -> None:
        """Sends a model's trainer the requests that waited for it."""
        outbox = self._outbox
        async with outbox.handing_over:
            for item in outbox.waiting(model):
                keeper = await self._keepers.keeper(item.user, model)
                if keeper is None or keeper.pod is None:
                    continue
                if not await self._give(item, keeper):
                    return

    async def _give(self, item: HeldRequest, keeper: Keeper) -> bool:
        """Whether the trainer has answered: what it refuses it would refuse again."""
        with self._answers.hold() as hold:
            status, answer = await self._keepers.call("POST", keeper, item.path, hold, item.body)
        if status in (502, 503):
            return False
        # A report for all trainers is of no trace of this one.
        if status != 200 and not (status == 404 and item.model is None):
            context = {"path": item.path, "status": status, "answer": answer[:200].decode()}
            _log.warning("held trace not kept", extra=context)
        self._outbox.give(item, keeper.model)
        return True

    def _hold(
        self, user: User, trace: str, path: str, body: bytes, model: NamespacedName | None
    ) -> Put:
        outbox = self._outbox
        put = outbox.put(user, _canonical(trace), path, body, model)
        if put != "Held":
            _log.warning("trace not held", extra={"trace": trace, "reason": put})
        elif outbox.task is None or outbox.task.done():
            outbox.task = asyncio.create_task(self._look(), context=spans.apart())
        return put

    async def _look(self) -> None:
        """Checks for trainers of the waiting requests until none waits."""
        while len(self._outbox):
            await asyncio.sleep(LOOK_SECONDS)
            world = self._watch.world
            for model in sorted(world.models):
                if world.ready_trainer(model) is not None:
                    try:
                        await self.hand_over(model)
                    except RefusalError as error:
                        _log.warning("traces not handed over", extra={"error": str(error)})


def trace_of(headers: Mapping[str, str]) -> str:
    """The trace that a request is sampled for; empty when there is none."""
    text = headers.get(TRACE, "")
    return text if re.fullmatch(r"[0-9a-fA-F-]{32,36}", text) else ""


def _held(user: User, put: Put) -> web.Response:
    """The answer to a report that no trainer has received yet."""
    if put == "Full":
        raise not_ready("TracesFull", "no trainer is there, and no more traces are held", _RUN)
    if put == "TooMany":
        raise over(
            "TooManyTraces",
            f"no trainer is there, and no more traces of {user.name} are held: it has "
            f"{PERCENT_OF_ONE} % of the room for all",
            _RUN,
        )
    return web.json_response({}, headers={TRACE_KEPT: HELD})


def _canonical(trace: str) -> str:
    return trace.replace("-", "").lower()


def _named_model(body: bytes) -> str:
    try:
        report = read_json(body)
    except UnreadableError as error:
        raise RefusalError(400, "InvalidJson", f"the body is not JSON: {error}") from error
    if not isinstance(report, dict):
        raise RefusalError(400, "InvalidJson", "the body is not a JSON object")
    model = report.get("model")
    return model.partition("@")[0] if isinstance(model, str) else ""


def _sample(answer: bytes, drawn: Sampled) -> dict[str, Any] | None:
    """The one choice's tokens and log-probs as a TrajectorySample; None when some are missing."""
    try:
        (choice,) = read_json(answer)["choices"]
        prompt, output = choice["prompt_token_ids"], choice["token_ids"]
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    except (LookupError, TypeError, ValueError):
        return None
    if prompt is None or not output or len(logprobs) != len(output):
        return None
    return {
        "prompt_token_ids": prompt,
        "output_token_ids": output,
        "output_logprobs": logprobs,
        "temperature": drawn.temperature,
        "shifted_by": drawn.shifted_by,
    }


def _best(answers: list[tuple[int, bytes]]) -> web.Response:
    """The first answer that kept the report; else the first refusal other than 404."""
    status, body = min(answers, key=lambda answer: (answer[0] != 200, answer[0] == 404))
    headers = {"Retry-After": "2"} if status == 503 else {}
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
