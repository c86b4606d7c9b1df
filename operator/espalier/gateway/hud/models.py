"""HUD's catalogue routes (``/v2/models``): models, their checkpoints and heads, forks."""

from __future__ import annotations

import asyncio

from aiohttp import web

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import decimal
from espalier.api.platform import (
    CheckpointEntry,
    ForkRequest,
    HeadRequest,
    ModelEntry,
    ModelPage,
    Platform,
)
from espalier.core.api_keys import SCOPES
from espalier.core.lineage.lineage import parent_name
from espalier.core.names import BASE
from espalier.gateway.access.audit import ACT, audited
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.offers import Offer, Offers, trainable
from espalier.gateway.access.request_body import read_body
from espalier.gateway.access.rights import SEE
from espalier.gateway.context import requested_slug
from espalier.gateway.hud.fork import Forks
from espalier.gateway.hud.set_head import HeadMoves
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.routing import slug_of
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld

PAGE = 100
MAX_DIGITS = 18
# HUD's words for our values.
_HUD_METRICS = {
    "reward/std": "reward_std",
    "reward/min": "reward_min",
    "reward/max": "reward_max",
}


class PlatformRoutes:
    """Handlers of ``/v2/models``."""

    def __init__(
        self,
        *,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        offers: Offers,
        forks: Forks,
        moves: HeadMoves,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._offers = offers
        self._forks = forks
        self._moves = moves

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers the routes; a model is named by uid, slug or ``namespace/slug``."""
        router.add_get("/v2/models", self.list)
        router.add_post("/v2/models/fork", self.fork)
        for model in ("/v2/models/{slug}", "/v2/models/{namespace}/{slug}"):
            router.add_get(f"{model}/checkpoints", self.checkpoints)
            router.add_get(f"{model}/head", self.head)
            router.add_put(f"{model}/head", self.set_head)
        router.add_get("/v2/models/{slug}", self.get)

    async def list(self, request: web.Request) -> web.Response:
        """The bases that the caller may fork and the models that it may get, by name, in pages."""
        user = await self._callers.caller(request, *SCOPES)
        offset, limit = _whole(request, "offset", 0), _whole(request, "limit", PAGE)
        models = sorted(self._watch.world.models)
        allowed = await asyncio.gather(*(self._callers.may_see(user, model) for model in models))
        offers = await self._offers.of(self._auth, user)
        seen = [model for model, may in zip(models, allowed, strict=True) if may]
        known: list[ModelEntry | NamespacedName] = [offered(offer) for offer in offers]
        known += seen
        shown = known[offset : offset + limit]
        listed = [
            one if isinstance(one, ModelEntry) else await self._entry(user, one) for one in shown
        ]
        items = [item for item in listed if item is not None]
        return _json(ModelPage(items=items, total=len(offers) + len(seen)))

    async def get(self, request: web.Request) -> web.Response:
        """One model, or a base by its id."""
        user = await self._callers.caller(request, *SCOPES)
        offer = self._offers.find(requested_slug(request))
        if offer is not None and offer in await self._offers.of(self._auth, user):
            return _json(offered(offer))
        model = await self._entry(user, await self._readable(request))
        return _json(_there(model))

    @audited("Fork")
    async def fork(self, request: web.Request) -> web.Response:
        """Creates a model, its head and a client-driven run; answers once the model exists."""
        user = await self._callers.caller(request, "train")
        offers = await self._offers.of(self._auth, user)
        if not offers:
            await self._callers.require_some_model(user, SEE)
        wanted = await read_body(request, ForkRequest)
        request[ACT].before, request[ACT].after = wanted.source_model_id, wanted.name
        offer = self._offers.find(wanted.source_model_id)
        if offer is not None and offer in offers:
            made = await self._forks.of_base(user, offer, wanted.name)
        else:
            source = await self._callers.model(user, wanted.source_model_id)
            await self._auth.require(user, *SEE, source)
            request[ACT].before = str(source)
            made = await self._forks.of_model(user, source, wanted.name)
        request[ACT].target = f"TrainableModel {made}"
        return _json(_there(await self._entry(user, made)))

    async def checkpoints(self, request: web.Request) -> web.Response:
        """The model's checkpoints and the one it was forked from, oldest first."""
        model = await self._readable(request)
        nodes = entries(self._watch.world, model)
        return web.json_response([item.model_dump() for item in nodes])

    async def head(self, request: web.Request) -> web.Response:
        """The active checkpoint; null when the base is served."""
        model = await self._readable(request)
        nodes = entries(self._watch.world, model)
        active = next((item for item in nodes if item.is_active), None)
        return web.json_response(active.model_dump() if active else None)

    @audited("MoveHead")
    async def set_head(self, request: web.Request) -> web.Response:
        """Moves the head to a checkpoint; the next optimizer step extends the tree from there."""
        user = await self._callers.caller(request, "promote")
        model = await self._callers.model(user, requested_slug(request))
        head = self._watch.world.head_of(model)
        before = head.status.current.name if head is not None and head.status.current else ""
        request[ACT].of("CheckpointHead", model, before=before or BASE)
        await self._auth.require(user, "update", "checkpointheads", model)
        wanted = await read_body(request, HeadRequest)
        request[ACT].after = wanted.checkpoint_id
        await self._moves.move(user, model, wanted.checkpoint_id)
        return web.json_response({"model_id": _uid(self._watch.world, model), **dict(wanted)})

    async def _entry(self, user: User, model: NamespacedName) -> ModelEntry | None:
        """A model as the catalogue lists it to a caller; None if it was deleted."""
        world = self._watch.world
        if model not in world.models:
            return None
        able = await trainable(self._auth, user, world, model)
        return entry(world, model, is_trainable=able) if model in world.models else None

    async def _readable(self, request: web.Request) -> NamespacedName:
        user = await self._callers.caller(request, "read", "train", "promote")
        model = await self._callers.model(user, requested_slug(request))
        await self._auth.require(user, *SEE, model)
        return model


def offered(offer: Offer) -> ModelEntry:
    """A base as the catalogue lists it to callers who may fork it."""
    return ModelEntry(id=offer.id, name=offer.name, model_name=offer.name, is_trainable=True)


def entry(world: ServedWorld, model: NamespacedName, *, is_trainable: bool) -> ModelEntry:
    """A model as the catalogue lists it."""
    slug = slug_of(world, model)
    return ModelEntry(
        id=_uid(world, model),
        name=slug,
        model_name=slug,
        is_trainable=is_trainable,
        created_at=world.models[model].metadata.creation_timestamp or None,
    )


def entries(world: ServedWorld, model: NamespacedName) -> list[CheckpointEntry]:
    """The tree of a model, oldest first; parents come before their children."""
    own = [
        checkpoint
        for name, checkpoint in world.checkpoints.items()
        if name.namespace == model.namespace and checkpoint.spec.model_ref.name == model.name
    ]
    own.sort(key=lambda c: (c.metadata.creation_timestamp, c.spec.term, c.spec.step))
    root = world.models[model].status.root_checkpoint_ref
    first = world.checkpoints.get(model.beside(root.name)) if root is not None else None
    head = world.head_of(model)
    current = head.status.current.name if head is not None and head.status.current else ""
    return [
        _entry(slug_of(world, model), checkpoint, active=checkpoint.metadata.name == current)
        for checkpoint in [*([first] if first is not None else []), *own]
    ]


def _entry(slug: str, checkpoint: Checkpoint, *, active: bool) -> CheckpointEntry:
    metrics = {m.name: float(decimal(m.value)) for m in checkpoint.status.metrics}
    parameters = checkpoint.spec.hyperparameters
    return CheckpointEntry(
        id=checkpoint.metadata.name,
        name=checkpoint.metadata.name,
        checkpoint_name=f"{slug}@{checkpoint.metadata.name}",
        prev_model_checkpoint_id=parent_name(checkpoint) or None,
        is_active=active,
        created_at=checkpoint.metadata.creation_timestamp or None,
        num_traces=_count(metrics, "trajectories/trained"),
        num_datums=_count(metrics, "datums/trained"),
        num_tokens=_count(metrics, "tokens/trained"),
        mean_reward=metrics.get("reward/mean"),
        learning_rate=float(parameters.learning_rate) if parameters.learning_rate else None,
        loss_fn=parameters.loss or None,
        metrics=metrics
        | {hud: metrics[ours] for ours, hud in _HUD_METRICS.items() if ours in metrics},
    )


def _there(item: ModelEntry | None) -> ModelEntry:
    if item is None:
        raise RefusalError(404, "ModelNotFound", "the model was deleted just now")
    return item


def _count(metrics: dict[str, float], name: str) -> int | None:
    return int(metrics[name]) if name in metrics else None


def _uid(world: ServedWorld, model: NamespacedName) -> str:
    return world.models[model].metadata.uid


def _whole(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise RefusalError(422, "InvalidRequest", f"{name}: {text!r} is not a whole number")
    return int(text)


def _json(body: Platform) -> web.Response:
    return web.Response(text=body.model_dump_json(), content_type="application/json")
