"""Tinker's API as one: its parts, its future route, and where it is mounted."""

from __future__ import annotations

from aiohttp import web

from espalier.core.api_keys import SCOPES
from espalier.gateway.access.audit import ACT, Act
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.access.quotas import Quotas
from espalier.gateway.access.request_body import read_body
from espalier.gateway.access.request_limits import HELD, MAX_OTHER_FUTURE_BYTES, limit_body
from espalier.gateway.access.rights import SAMPLE
from espalier.gateway.context import GatewayContext
from espalier.gateway.hud.fork import Forks
from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.trainer_lookup import TrainerLookup
from espalier.gateway.routes.training_access import TrainingAccess
from espalier.gateway.tinker.bodies import RetrieveFuture
from espalier.gateway.tinker.commands import Commands
from espalier.gateway.tinker.downloads import DownloadRoutes
from espalier.gateway.tinker.futures import Future
from espalier.gateway.tinker.models import Models
from espalier.gateway.tinker.namespaces import Namespaces
from espalier.gateway.tinker.outcomes import response
from espalier.gateway.tinker.refusals import PREFIXES, unknown
from espalier.gateway.tinker.rest_routes import RestRoutes
from espalier.gateway.tinker.results import Results
from espalier.gateway.tinker.samples import Samples
from espalier.gateway.tinker.sampling_routes import SamplingRoutes
from espalier.gateway.tinker.saves import Saves
from espalier.gateway.tinker.session_routes import SessionRoutes
from espalier.gateway.tinker.training_routes import TrainingRoutes


class TinkerRoutes:
    """Handlers of Tinker's API."""

    def __init__(  # noqa: PLR0917 what the parts share
        self,
        context: GatewayContext,
        callers: Callers,
        pods: PodCalls,
        forks: Forks,
        trainers: TrainerLookup,
        quotas: Quotas,
    ) -> None:
        watch, auth, offers = context.watch, context.auth, context.offers
        access = TrainingAccess(watch, auth)
        models = Models(watch, auth, offers, forks, access)
        commands = Commands(watch, trainers, pods, quotas)
        saves = Saves(watch, context.cluster)
        samples = Samples(watch, pods, quotas, context.budgets.bodies, context.limits)
        self._callers = callers
        self._watch = watch
        self._results = Results(watch, auth, access, trainers, commands, samples, saves)
        self._parts = (
            SessionRoutes(callers, watch, auth, offers, Namespaces(watch, auth)),
            TrainingRoutes(callers, watch, auth, access, models, commands),
            SamplingRoutes(callers, watch, auth, offers, models),
            RestRoutes(callers, watch, auth, access, models, saves),
            DownloadRoutes(callers, watch, auth, models, trainers, pods),
        )

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers the routes, at the root and below /tinker."""
        for prefix in (prefix.rstrip("/") for prefix in PREFIXES):
            for part in self._parts:
                part.add_to(router, prefix)
            router.add_post(f"{prefix}/retrieve_future", self.retrieve_future)
            router.add_route("*", f"{prefix}/{{rest:.*}}", self.others)

    async def retrieve_future(self, request: web.Request) -> web.Response:
        """What became of a request."""
        user = await self._callers.caller(request, "train", "sample")
        if not await self._callers.has_right_to_some(user, SAMPLE):
            # Of a sample they have none, and others are short.
            limit_body(request, MAX_OTHER_FUTURE_BYTES)
        asked = await read_body(request, RetrieveFuture)
        future = Future.read(asked.request_id)
        if future is None:
            raise unknown("request_id", asked.request_id)
        user.require_scope("sample" if future.kind == "sample" else "train")
        act = Act("Sample" if future.kind == "sample" else "Save", told=False, awaited=True)
        if future.kind in ("sample", "save"):
            # Whoever may do what an id says may write it by hand, so nothing was told of it before.
            act.target = future.subject
            request[ACT] = act
        text = told = asked.request_id
        del asked
        if future.kind == "sample":
            # No poll that waits has the request, which may be megabytes; nor is it told again.
            text = await self._results.begin(user, text, future, act, request[HELD])
            told = str(future)
        return response(told, await self._results.outcome(user, text, future, act))

    async def others(self, request: web.Request) -> web.Response:
        """Refused by name, for callers: a part of Tinker's service that a cluster has not."""
        await self._callers.caller(request, *SCOPES)
        raise RefusalError(
            404,
            "NotOffered",
            f"{request.method} {request.path} is not served here",
            "docs/guides/tinker.md lists what it has, and what takes the place of the rest",
        )
