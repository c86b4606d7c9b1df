"""The routes of ``/console/api/v1``: read models, trees, runs and rollouts; move heads."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from espalier.api.console import Changed, HeadRequest, ModelList, RunList, View
from espalier.core.head.head_request import PIN
from espalier.core.names import BASE
from espalier.gateway.access.audit import ACT, audited
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.request_body import read_body
from espalier.gateway.access.rights import SEE
from espalier.gateway.console import views
from espalier.gateway.console.kept_rollouts import KeptRollouts
from espalier.gateway.console.standings import Standings
from espalier.gateway.console.streams import Streams
from espalier.gateway.hud.set_head import HeadMoves, require_checkpoint
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName

API = "/console/api/v1"
MODEL = API + "/models/{namespace}/{name}"
HEAD = API + "/heads/{namespace}/{name}"
MAX_DIGITS = 9


class ConsoleRoutes:
    """Handlers of the console's API."""

    def __init__(
        self,
        *,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        standings: Standings,
        rollouts: KeptRollouts,
        moves: HeadMoves,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._standings = standings
        self._rollouts = rollouts
        self._moves = moves
        self._streams = Streams(watch)

    def add_to(self, app: web.Application) -> None:
        """Registers the routes."""
        router = app.router
        router.add_get(f"{API}/models", self.models)
        router.add_get(f"{API}/changes", self.list_changes)
        router.add_get(MODEL, self.tree)
        router.add_get(f"{MODEL}/series", self.series)
        router.add_get(f"{MODEL}/runs", self.runs)
        router.add_get(f"{MODEL}/checkpoints/{{checkpoint}}/rollouts", self.rollouts)
        router.add_get(f"{MODEL}/changes", self.changes)
        router.add_put(HEAD, self.move)
        app.on_shutdown.append(self._streams.close)

    async def models(self, request: web.Request) -> web.Response:
        """The models that the caller may get."""
        user = await self._callers.caller(request, "read")
        world, seen = self._watch.world, await self._seen(user)
        return _json(
            ModelList(
                user=user.name,
                namespaces=sorted({model.namespace for model in seen}),
                models=views.model_views(world, [one for one in seen if one in world.models]),
            )
        )

    async def tree(self, request: web.Request) -> web.Response:
        """A model with its tree."""
        user, model = await self._readable(request)
        world = self._watch.world
        heads = world.heads_of(model)
        found = await asyncio.gather(*(self._standings.of(user, head) for head in heads))
        by_name = {head.metadata.name: one for head, one in zip(heads, found, strict=True)}
        self._there(model)
        return _json(
            views.tree_view(
                world, model, lambda head: by_name.get(head.metadata.name, views.UNREAD)
            )
        )

    async def series(self, request: web.Request) -> web.Response:
        """A metric over the tree."""
        _, model = await self._readable(request)
        metric = request.query.get("metric", "")
        if not metric:
            raise RefusalError(
                422, "InvalidRequest", "metric: it is missing", "Give one of the tree's metrics"
            )
        return _json(views.series(self._watch.world, model, metric))

    async def runs(self, request: web.Request) -> web.Response:
        """The model's runs that the caller may get, newest first."""
        user, model = await self._readable(request)
        runs = self._watch.world.runs_of(model)
        allowed = await asyncio.gather(
            *(
                self._auth.allowed(user, "get", "trainingruns", model.beside(run.metadata.name))
                for run in runs
            )
        )
        seen = {run.metadata.name: run for run, may in zip(runs, allowed, strict=True) if may}
        newest = sorted(seen.values(), key=lambda r: r.metadata.creation_timestamp, reverse=True)
        now = datetime.now(UTC)
        return _json(RunList(runs=[views.run_view(run, seen, now) for run in newest]))

    async def rollouts(self, request: web.Request) -> web.Response:
        """Kept rollouts of a Checkpoint, which the caller must be allowed to get too."""
        user, model = await self._readable(request)
        name = request.match_info["checkpoint"]
        await self._auth.require(user, "get", "checkpoints", model.beside(name))
        self._there(model)
        world = self._watch.world
        require_checkpoint(world, model, name)
        checkpoint = world.checkpoints.get(model.beside(name))
        if checkpoint is None:
            raise RefusalError(404, "CheckpointNotFound", f"Checkpoint {name} was deleted")
        return _json(await self._rollouts.page(model, checkpoint, _after(request)))

    async def list_changes(self, request: web.Request) -> web.StreamResponse:
        """An event after every change of the models that the caller may get."""
        user = await self._callers.caller(request, "read")

        async def look() -> Hashable:
            caller = await self._callers.caller(request, "read")
            seen = await self._seen(caller)
            revisions = self._watch.world.revisions
            return tuple((model, revisions[model]) for model in seen)

        return await self._streams.send(request, user, Changed(what="models"), look)

    async def changes(self, request: web.Request) -> web.StreamResponse:
        """An event after every change of a model, its tree, its heads and its runs."""
        user, _ = await self._readable(request)

        async def look() -> Hashable:
            _, model = await self._readable(request)
            return self._watch.world.revisions[model]

        return await self._streams.send(request, user, Changed(what="model"), look)

    @audited("MoveHead")
    async def move(self, request: web.Request) -> web.Response:
        """Writes into a head what it is to ask for; the operator moves it."""
        user = await self._callers.caller(request, "promote")
        name = NamespacedName(request.match_info["namespace"], request.match_info["name"])
        request[ACT].of("CheckpointHead", name)
        await self._auth.require(user, "update", "checkpointheads", name)
        wanted = await read_body(request, HeadRequest)
        head = self._watch.world.heads.get(name)
        if head is None or name.namespace not in self._watch.world.namespaces:
            raise RefusalError(
                404,
                "HeadNotFound",
                f"no CheckpointHead {name} in the served namespaces",
                "kubectl get ckhead -A lists them",
            )
        current = head.status.current
        before, after = current.name if current else "", wanted.checkpoint or wanted.mode
        request[ACT].of("CheckpointHead", name, before=before or BASE, after=after)
        await self._moves.edit(
            user, name, self._change(name.beside(head.spec.model_ref.name), wanted)
        )
        return _json(wanted)

    def _change(self, model: NamespacedName, wanted: HeadRequest) -> dict[str, Any]:
        if wanted.mode != PIN:
            unused = ["checkpoint"] if wanted.checkpoint else []
            unused += {"on_pin"} & wanted.model_fields_set
            if unused:
                raise RefusalError(
                    422,
                    "InvalidRequest",
                    f"{', '.join(unused)}: without effect in mode {wanted.mode}",
                    "Leave it out, or ask for mode Pin",
                )
            return {"mode": wanted.mode}
        self._there(model)
        require_checkpoint(self._watch.world, model, wanted.checkpoint)
        reference = {"name": wanted.checkpoint}
        return {"mode": PIN, "checkpointRef": reference, "onPin": wanted.on_pin}

    async def _seen(self, user: User) -> list[NamespacedName]:
        world = self._watch.world
        served = sorted(model for model in world.models if model.namespace in world.namespaces)
        allowed = await asyncio.gather(*(self._auth.allowed(user, *SEE, model) for model in served))
        return [model for model, may in zip(served, allowed, strict=True) if may]

    async def _readable(self, request: web.Request) -> tuple[User, NamespacedName]:
        """The caller and the model, which it may get; 403 also for one that there is not."""
        user = await self._callers.caller(request, "read")
        model = NamespacedName(request.match_info["namespace"], request.match_info["name"])
        await self._auth.require(user, *SEE, model)
        self._there(model)
        return user, model

    def _there(self, model: NamespacedName) -> None:
        world = self._watch.world
        if model in world.models and model.namespace in world.namespaces:
            return
        raise RefusalError(
            404,
            "ModelNotFound",
            f"no TrainableModel {model} in the served namespaces",
            f"GET {API}/models lists those that you may get",
        )


def _after(request: web.Request) -> int:
    text = request.query.get("after", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise RefusalError(
            422, "InvalidRequest", "after: it is not a whole number", "Send next of the last page"
        )
    return int(text)


def _json(body: View) -> web.Response:
    return web.Response(
        text=body.model_dump_json(),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
