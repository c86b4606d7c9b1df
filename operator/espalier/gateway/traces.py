"""Rollouts of HUD's client by trace id: what it reports of them, and what was sampled for them.

Nothing is kept here: traces live with the trainers of the models, where training resolves their
ids. A report that names no model goes to every trainer that its caller may train with.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from espalier.api.sampled import Sampled
from espalier.gateway.answers import read_held
from espalier.gateway.auth import User
from espalier.gateway.bodies import read_bytes
from espalier.gateway.podfaults import refusal_of
from espalier.gateway.pods import Pod
from espalier.gateway.problems import RefusalError
from espalier.gateway.room import Hold
from espalier.gateway.routing import find_model
from espalier.gateway.runs import active_run
from espalier.gateway.services import Services
from espalier.gateway.snapshot import Id
from espalier.podclient import PodFaultError
from espalier.untrusted import UnreadableError, read_json

TRACE = "Trace-Id"
SECONDS = 10.0
_ID = "{id:[0-9a-fA-F-]{32,36}}"
_TIMEOUT = aiohttp.ClientTimeout(total=SECONDS)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeper:
    """The trainer of a model, which keeps the model's traces."""

    model: Id
    pod: Pod


class Traces:
    """Handlers of ``/v2/trace``, and the recorder of completions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers the routes."""
        router.add_post(f"/v2/trace/job/{_ID}/enter", self.report)
        router.add_post(f"/v2/trace/{_ID}/enter", self.report)
        router.add_post(f"/v2/trace/{_ID}/exit", self.report)
        router.add_get(f"/v2/trace/{_ID}", self.get)
        router.add_post(f"/v3/api/trace/{_ID}/telemetry-upload", self.drop_spans)

    async def report(self, request: web.Request) -> web.Response:
        """Keeps a report with every trainer that it may concern; one is enough."""
        user = await self._services.caller(request)
        # Refuses who may train nothing before the body is read.
        await self._keepers(user, "")
        body = await read_bytes(request)
        keepers = await self._keepers(user, _named_model(body))
        path = request.path.removeprefix("/v2/trace")
        with self._services.rooms.answers.hold() as hold:
            answers = await asyncio.gather(
                *(self._call("POST", k, path, hold, body) for k in keepers)
            )
            return _best(answers)

    async def get(self, request: web.Request) -> web.Response:
        """All that is kept of a trace."""
        user = await self._services.caller(request)
        path = request.path.removeprefix("/v2/trace")
        keepers = await self._keepers(user, "")
        with self._services.rooms.answers.hold() as hold:
            answers = await asyncio.gather(*(self._call("GET", k, path, hold) for k in keepers))
            return _best(answers)

    async def drop_spans(self, request: web.Request) -> web.Response:
        """Takes HUD's telemetry and keeps none of it: see docs/hud.md."""
        await self._services.caller(request)
        return web.Response(status=204)

    async def keeper(self, user: User, model: Id) -> Keeper | None:
        """The trainer that keeps what the caller samples of a model; None while nothing trains."""
        snapshot = self._services.view.snapshot
        run = active_run(snapshot, model)
        pod = next((p for p in snapshot.pods_of(model, "trainer") if p.ready), None)
        if run is None or pod is None or model.namespace not in snapshot.namespaces:
            return None
        name = model.beside(run.metadata.name)
        may = await self._services.auth.allowed(user, "update", "trainingruns", name)
        return Keeper(model, pod) if may else None

    async def record(
        self, keeper: Keeper, trace: str, answer: bytes, *, drawn: Sampled, checkpoint: str
    ) -> bool:
        """Keeps the turn that a checkpoint sampled, in vLLM's form; False if that failed.

        The caller gets its answer only afterwards, so that a trace it has seen to its end is whole.
        """
        sample = _sample(answer, drawn)
        if sample is None:
            return False
        if checkpoint:
            sample["checkpoint"] = checkpoint
        path = f"/{trace}/samples"
        with self._services.rooms.answers.hold() as hold:
            try:
                status, _ = await self._call(
                    "POST", keeper, path, hold, json.dumps(sample).encode()
                )
            except RefusalError as error:
                _log.warning("sample not kept", extra={"trace": trace, "error": str(error)})
                return False
        if status != 200:
            _log.warning("sample not kept", extra={"trace": trace, "status": status})
        return status == 200

    async def _keepers(self, user: User, slug: str) -> list[Keeper]:
        snapshot = self._services.view.snapshot
        named = find_model(snapshot, slug) if slug else None
        models = [named] if isinstance(named, Id) else sorted(snapshot.models)
        found = await asyncio.gather(*(self.keeper(user, model) for model in models))
        keepers = [keeper for keeper in found if keeper is not None]
        if not keepers:
            raise RefusalError(
                404,
                "NothingTrains",
                "no model that you may train has a trainer now, so nothing keeps the report",
                "Create or resume a TrainingRun of the model, and grant verb update on it",
            )
        return keepers

    async def _call(
        self, method: str, keeper: Keeper, path: str, hold: Hold, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Status and body; 503 where the trainer did not answer, 502 where it is none of ours."""
        headers = self._services.tokens.header(keeper.model, keeper.pod)
        url = f"http://{keeper.pod.address}/traces{path}"
        try:
            async with self._services.session.request(
                method, url, data=body, headers=headers, timeout=_TIMEOUT
            ) as answer:
                return answer.status, await read_held(answer, hold)
        except PodFaultError as fault:
            refusal = refusal_of(self._services.view.snapshot, fault)
            problem = {"detail": refusal.detail, "reason": refusal.reason}
            return 502, json.dumps({**problem, "remedy": refusal.remedy}).encode()
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = {"detail": f"the trainer of {keeper.model}: {error!r}", "reason": "Lost"}
            return 503, json.dumps({**problem, "remedy": "Send it again"}).encode()


def trace_of(headers: Mapping[str, str]) -> str:
    """The trace that a request is sampled for; empty when there is none."""
    text = headers.get(TRACE, "")
    return text if re.fullmatch(r"[0-9a-fA-F-]{32,36}", text) else ""


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
    """The first that was kept; else the first refusal that is not for want of the trace."""
    status, body = min(answers, key=lambda answer: (answer[0] != 200, answer[0] == 404))
    headers = {"Retry-After": "2"} if status == 503 else {}
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
