"""Lists of models and saved weights, and what can be done with them."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

from aiohttp import web

from espalier.core.api_keys import Scope
from espalier.core.gitowner import REQUESTED_BY
from espalier.gateway.access.audit import ACT, audited
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.request_body import read_body
from espalier.gateway.access.rights import SEE
from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.training_access import TrainingAccess
from espalier.gateway.tinker import lora
from espalier.gateway.tinker.bases import base_name
from espalier.gateway.tinker.bodies import OfPath, SetTtl
from espalier.gateway.tinker.models import METADATA, Models, model_id
from espalier.gateway.tinker.names import EXTERNAL, KINDS, TinkerModel, WeightsPath
from espalier.gateway.tinker.refusals import unknown
from espalier.gateway.tinker.saves import Saved, Saves, after, every, metadata_of, now
from espalier.gateway.tinker.served import model_of, session_of
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld

Entry = dict[str, Any]
LIMIT, MOST = 100, 1000
_TYPES = {"weights": "training", "sampler_weights": "sampler", EXTERNAL: "external"}
_PUBLIC = (
    "weights are never public here: who may get the TrainableModel may load them",
    "Grant verb get on trainablemodels by a Role and a RoleBinding",
)


class RestRoutes:
    """Handlers of training_runs, checkpoints, sessions and weights_info."""

    def __init__(  # noqa: PLR0917 what the handlers share
        self,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        access: TrainingAccess,
        models: Models,
        saves: Saves,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._access = access
        self._models = models
        self._saves = saves

    def add_to(self, router: web.UrlDispatcher, prefix: str) -> None:
        """Registers the routes below a prefix."""
        run = f"{prefix}/training_runs/{{run}}"
        saved = f"{run}/checkpoints/{{kind}}/{{name}}"
        router.add_get(f"{prefix}/training_runs", self.runs)
        router.add_get(run, self.run)
        router.add_get(f"{run}/checkpoints", self.of_run)
        router.add_delete(saved, self.delete)
        router.add_put(f"{saved}/ttl", self.set_ttl)
        router.add_post(f"{saved}/publish", self.publish)
        router.add_delete(f"{saved}/publish", self.unpublish)
        router.add_get(f"{prefix}/checkpoints", self.checkpoints)
        router.add_post(f"{prefix}/weights_info", self.weights_info)
        router.add_get(f"{prefix}/sessions", self.sessions)
        router.add_get(f"{prefix}/sessions/{{session}}", self.session)

    async def runs(self, request: web.Request) -> web.Response:
        """The models that the caller may get, newest first."""
        user = await self._callers.caller(request, "read", "train")
        models = await self._readable(user, request.query.get("project_id"))
        page, cursor = _page(request, [model_id(self._watch.world, model) for model in models])
        entries = self._entries([model.trained for model in page])
        runs = [self._run(model, entries.get(model.trained, [])) for model in page]
        return web.json_response({"training_runs": runs, "cursor": cursor})

    async def run(self, request: web.Request) -> web.Response:
        """One model."""
        _, model = await self._model(request, "read", "train")
        entries = self._entries([model.trained])
        return web.json_response(self._run(model, entries.get(model.trained, [])))

    async def of_run(self, request: web.Request) -> web.Response:
        """What is saved of a model."""
        _, model = await self._model(request, "read", "train")
        return web.json_response(
            {"checkpoints": self._entries([model.trained]).get(model.trained, [])}
        )

    async def checkpoints(self, request: web.Request) -> web.Response:
        """What is saved of all models that the caller may get, newest first."""
        user = await self._callers.caller(request, "read", "train")
        found = self._entries(await self._readable(user, None))
        entries = sorted(chain(*found.values()), key=lambda one: str(one["time"]), reverse=True)
        page, cursor = _page(request, entries)
        return web.json_response({"checkpoints": page, "cursor": cursor})

    @audited("Unsave")
    async def delete(self, request: web.Request) -> web.Response:
        """Takes the name off the weights; the Checkpoint goes by the rules of its run."""
        saved = await self._own(request)
        request[ACT].target = str(saved.path)
        await self._saves.change(saved, expires_at=now())
        return web.json_response({})

    @audited("Save")
    async def set_ttl(self, request: web.Request) -> web.Response:
        """Says how long the name stands."""
        saved = await self._own(request)
        asked = await read_body(request, SetTtl)
        ends = after(asked.ttl_seconds)
        request[ACT].target, request[ACT].after = str(saved.path), f"until {ends or 'deleted'}"
        await self._saves.change(saved, expires_at=ends)
        return web.json_response({})

    async def publish(self, request: web.Request) -> web.Response:
        """Refused by name."""
        await self._own(request)
        raise RefusalError(422, "NeverPublic", *_PUBLIC)

    async def unpublish(self, request: web.Request) -> web.Response:
        """Nothing to do: no weights are public."""
        await self._own(request)
        return web.json_response({})

    async def weights_info(self, request: web.Request) -> web.Response:
        """What a client needs to know to load weights."""
        user = await self._callers.caller(request, "read", "train")
        asked = await read_body(request, OfPath)
        saved = await self._models.saved(user, asked.tinker_path)
        world, model = self._watch.world, saved.path.model.trained
        if model not in world.models:
            raise unknown("tinker_path", asked.tinker_path)
        adapter = world.models[model].spec.adapter
        return web.json_response(
            {
                "base_model": base_name(world, model),
                "optimizer_config": {"type": "adamw"},
                "is_lora": adapter.type == "LoRA",
                "lora_rank": adapter.lora_rank or None,
                **lora.trains(adapter),
            }
        )

    async def sessions(self, request: web.Request) -> web.Response:
        """The sessions that models were made in, newest first."""
        user = await self._callers.caller(request, "read", "train")
        models = await self._readable(user, None)
        made = [model_id(self._watch.world, model).session for model in models]
        found = list(dict.fromkeys(str(session) for session in made if session is not None))
        page, cursor = _page(request, found)
        return web.json_response({"sessions": page, "cursor": cursor})

    async def session(self, request: web.Request) -> web.Response:
        """The models of a session."""
        user = await self._callers.caller(request, "read", "train")
        session = session_of(self._watch.world, request.match_info["session"])
        models = await self._readable(user, session.namespace)
        made = [model_id(self._watch.world, model) for model in models]
        ids = [str(one) for one in made if one.session == session]
        return web.json_response({"training_run_ids": ids, "sampler_ids": []})

    async def _readable(self, user: User, project: str | None) -> list[NamespacedName]:
        world = self._watch.world
        models = [
            model
            for model in world.models
            if model.namespace in world.namespaces and project in (None, model.namespace)
        ]
        models.sort(key=lambda m: (world.models[m].metadata.creation_timestamp, m), reverse=True)
        seen = [m for m in models if await self._auth.allowed(user, *SEE, m)]
        return [m for m in seen if m in world.models]

    async def _model(self, request: web.Request, *scopes: Scope) -> tuple[User, TinkerModel]:
        user = await self._callers.caller(request, *scopes)
        text = request.match_info["run"]
        model = model_of(self._watch.world, text, "training_run_id")
        await self._auth.require(user, *SEE, model.trained)
        if model.trained not in self._watch.world.models:
            raise unknown("training_run_id", text)
        return user, model

    async def _own(self, request: web.Request) -> Saved:
        """Saved weights whose name the caller may change."""
        user, model = await self._model(request, "train")
        kind, name = request.match_info["kind"], request.match_info["name"]
        if (act := request.get(ACT)) is not None:
            act.target = f"{model}/{kind}/{name}"
        if kind not in KINDS:
            raise unknown("checkpoint_id", f"{kind}/{name}")
        saved = await self._models.saved(user, str(WeightsPath(model, KINDS[kind], name)))
        await self._access.require_run(user, model.trained)
        if not saved.given:
            raise RefusalError(
                422,
                "CheckpointsOwnName",
                f"{name} is the name of a Checkpoint itself, not one that it was saved under",
                f"kubectl delete ckpt {name} -n {model.trained.namespace} deletes it, and a run's "
                "spec.checkpoint says how long checkpoints are kept",
            )
        return saved

    def _run(self, model: TinkerModel, entries: list[Entry]) -> Entry:
        world = self._watch.world
        body = world.models[model.trained]
        annotations = body.metadata.annotations
        last = {
            kind: [e for e in entries if e["checkpoint_type"] == kind] for kind in _TYPES.values()
        }
        made = body.metadata.creation_timestamp
        return {
            "training_run_id": str(model),
            "base_model": base_name(world, model.trained),
            "model_owner": annotations.get(REQUESTED_BY) or "kubectl",
            "is_lora": body.spec.adapter.type == "LoRA",
            "lora_rank": body.spec.adapter.lora_rank or None,
            "corrupted": False,
            "last_request_time": _last(world, model.trained) or made,
            "last_checkpoint": next(iter(last["training"][::-1]), None),
            "last_sampler_checkpoint": next(iter(last["sampler"][::-1]), None),
            "user_metadata": _texts(annotations.get(METADATA)),
        }

    def _entries(self, models: list[NamespacedName]) -> dict[NamespacedName, list[Entry]]:
        """What is saved of each model, oldest first."""
        wanted = set(models)
        found: dict[NamespacedName, list[Entry]] = {}
        for namespace in sorted({model.namespace for model in wanted}):
            for saved in every(self._watch.world, namespace):
                if saved.path.model.trained in wanted:
                    found.setdefault(saved.path.model.trained, []).append(_entry(saved))
        return found


def _entry(saved: Saved) -> Entry:
    return {
        "checkpoint_id": saved.path.checkpoint_id,
        "checkpoint_type": _TYPES[saved.path.kind],
        "time": saved.save.time,
        "tinker_path": str(saved.path),
        "size_bytes": saved.size_bytes,
        "public": False,
        "user_metadata": metadata_of(saved.save),
        "expires_at": saved.save.expires_at,
    }


def _last(world: ServedWorld, model: NamespacedName) -> str:
    """When the newest checkpoint of a model was made."""
    made = (
        c.metadata.creation_timestamp
        for name, c in world.checkpoints.items()
        if name.namespace == model.namespace and c.spec.model_ref.name == model.name
    )
    return max(made, default="")


def _texts(metadata: str | None) -> dict[str, str] | None:
    """The client's notes; what is no text is shown as JSON."""
    if not metadata:
        return None
    found = json.loads(metadata)
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in found.items()}


def _page(request: web.Request, items: list[Any]) -> tuple[list[Any], dict[str, int]]:
    offset, limit = _whole(request, "offset", 0), min(_whole(request, "limit", LIMIT), MOST)
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return items[offset : offset + limit], cursor


def _whole(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise RefusalError(
            422, "InvalidRequest", f"{name} is {text[:32]!r}", "Send a whole number from 0"
        )
    return int(text)
