"""Makes the models that clients ask for: a TrainableModel, its head and a run that they drive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from espalier.core import conditions
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.callers import SEEN_SECONDS
from espalier.gateway.access.offers import Offers, drives, may_know_bases
from espalier.gateway.access.rights import SAMPLE, SEE, TRAIN
from espalier.gateway.hud.fork import Forks
from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.training_access import TrainingAccess
from espalier.gateway.tinker import lora
from espalier.gateway.tinker.bases import BASE_NAME, base_name, bases, fork, new_model
from espalier.gateway.tinker.bodies import CreateModel, LoadWeights, LoraConfig, OptimizerConfig
from espalier.gateway.tinker.futures import Future, failed
from espalier.gateway.tinker.names import Session, TinkerModel, WeightsPath
from espalier.gateway.tinker.refusals import unknown
from espalier.gateway.tinker.saves import Saved, find
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld

MODEL_ID = "espalier.dev/tinker-model"
METADATA = "espalier.dev/tinker-metadata"
# A digest of the request, so that another one with its number is told from the same sent again.
REQUEST = "espalier.dev/tinker-request"
ADAMW = "adamw"
# What Tinker's command line notes of a model that it makes to download weights: nobody samples it.
DOWNLOAD = {"created_by": "tinker checkpoint download"}
MAX_METADATA_CHARS = 16 * 2**10

Body = dict[str, Any]


class Models:
    """Creates models; every method answers with the future of one."""

    def __init__(
        self,
        watch: WorldWatch,
        auth: Authenticator,
        offers: Offers,
        forks: Forks,
        access: TrainingAccess,
    ) -> None:
        self._watch = watch
        self._auth = auth
        self._offers = offers
        self._forks = forks
        self._access = access

    async def create(self, user: User, session: Session, asked: CreateModel) -> Future:
        """A new model of a base, or a TrainableModel that there is, by its name."""
        model = TinkerModel.new(session, asked.model_seq_id)
        config = asked.lora_config or LoraConfig(rank=32)
        if problem := _optimizer_problem(asked.optimizer_config):
            return failed(str(model), problem)
        known = bases(self._watch.world, self._offers.offers, session.namespace)
        if asked.base_model not in known:
            return await self._existing(user, session, asked, config, sorted(known))
        adapter = lora.adapter_spec(config)
        if isinstance(adapter, str):
            return failed(str(model), f"lora_config.{adapter}")
        spec = new_model(known[asked.base_model], adapter)
        named = {BASE_NAME: asked.base_model}
        await self._make(user, model, spec, asked.user_metadata, named, asked.model_dump_json())
        return Future("create", str(model))

    async def load(self, user: User, session: Session, asked: LoadWeights) -> Future:
        """A new model that goes on from saved weights, with the optimizer's state or without."""
        model = TinkerModel.new(session, asked.model_seq_id or 0)
        if asked.optimizer_config and (problem := _optimizer_problem(asked.optimizer_config)):
            return failed(str(model), problem)
        saved = await self.saved(user, asked.path)
        origin = saved.path.model.trained
        if origin.namespace != session.namespace:
            return failed(
                str(model),
                f"path is of namespace {origin.namespace}, and the session of "
                f"{session.namespace}: create the client with project_id {origin.namespace}",
            )
        world = self._watch.world
        if saved.checkpoint:
            # Another model's where the model has not left the weights that it was forked from.
            checkpoint = world.checkpoints[origin.beside(saved.checkpoint)]
            origin = origin.beside(checkpoint.spec.model_ref.name)
        if origin not in world.models:
            return failed(str(model), f"path is of model {origin}, which was deleted")
        name = base_name(world, origin)
        if asked.base_model not in (None, name):
            return failed(
                str(model), f"base_model is {asked.base_model}, and the weights are of {name}"
            )
        spec = fork(world.models[origin], saved.checkpoint, optimizer=asked.optimizer)
        if asked.user_metadata == DOWNLOAD:
            spec["rollout"] = {**spec.get("rollout", {}), "replicas": 0}
        named = {BASE_NAME: name}
        await self._make(user, model, spec, asked.user_metadata, named, asked.model_dump_json())
        return Future("create", str(model), 0, {"path": asked.path})

    async def serve(
        self, user: User, model: NamespacedName, spec: Body, named: Mapping[str, str]
    ) -> None:
        """A model that is only sampled."""
        await self._auth.require(user, *SAMPLE, model)
        await self._forks.of_spec(user, model, spec, named, kinds=("TrainableModel",))

    async def saved(self, user: User, text: str) -> Saved:
        """The weights of a path; 404 if there are none, 403 if the caller may not see the model."""
        path = WeightsPath.read(text)
        if path is None or path.model.trained.namespace not in self._watch.world.namespaces:
            raise unknown("path", text)
        await self._auth.require(user, *SEE, path.model.trained)
        found = await self._watch.wait_for(lambda world: find(world, path), SEEN_SECONDS)
        if found is None:
            raise unknown("path", text)
        return found

    async def _existing(
        self,
        user: User,
        session: Session,
        asked: CreateModel,
        config: LoraConfig,
        known: list[str],
    ) -> Future:
        world = self._watch.world
        name = asked.base_model.removeprefix(f"{session.namespace}/")
        model = NamespacedName(session.namespace, name)
        if model not in world.models or not await self._auth.allowed(user, *SEE, model):
            raise await self._no_base(user, session, asked.base_model, known)
        await self._access.require_run(user, model)
        made = TinkerModel.new(session, asked.model_seq_id, name)
        if problem := lora.mismatch(config, world.models[model].spec.adapter):
            return failed(str(made), f"lora_config.{problem}")
        if asked.user_metadata:
            return failed(
                str(made), f"user_metadata: model {model} was there before, so leave it out"
            )
        return Future("create", str(made))

    async def _no_base(
        self, user: User, session: Session, asked: str, known: list[str]
    ) -> RefusalError:
        """404 with what there is, as far as the caller may see it."""
        world = self._watch.world
        models = sorted(m for m in world.models if m.namespace == session.namespace)
        driven = [
            model.name
            for model in models
            if await self._auth.allowed(user, *SEE, model)
            and await drives(self._auth, user, world, model)
        ]
        known = known if await may_know_bases(self._auth, user, session.namespace) else []
        return RefusalError(
            404,
            "BaseNotFound",
            f"base_model: namespace {session.namespace} has no base {asked[:200]!r}",
            f"Bases: {', '.join(known) or 'none'}. Models that there are, to be trained by name: "
            f"{', '.join(driven) or 'none'}. gateway.bases of the chart offers more",
        )

    async def _make(  # noqa: PLR0917 all of what makes a model
        self,
        user: User,
        model: TinkerModel,
        spec: Body,
        metadata: Mapping[str, Any] | None,
        named: Mapping[str, str],
        request: str,
    ) -> None:
        annotations = {
            MODEL_ID: str(model),
            REQUEST: hashlib.sha256(request.encode()).hexdigest(),
            **named,
        }
        if metadata:
            annotations[METADATA] = json.dumps(metadata, sort_keys=True)
            if len(annotations[METADATA]) > MAX_METADATA_CHARS:
                raise RefusalError(
                    422, "InvalidRequest", f"user_metadata is over {MAX_METADATA_CHARS} characters"
                )
        # A caller who may make a run but not drive it would leave the run behind.
        await self._auth.require(user, *TRAIN, model.trained)
        await self._forks.of_spec(user, model.trained, spec, annotations)


def model_id(world: ServedWorld, model: NamespacedName) -> TinkerModel:
    """The id that a model is listed under: the one that it was made with."""
    made = world.models[model].metadata.annotations.get(MODEL_ID, "")
    found = TinkerModel.read(made)
    return found if found is not None and found.trained == model else TinkerModel.listed(model)


def stalled(world: ServedWorld, model: NamespacedName) -> str:
    """Why a model cannot be trained without an edit; empty if nothing is wrong."""
    body = world.models.get(model)
    stated = [(run.status.conditions, run.metadata.generation) for run in world.runs_of(model)]
    if body is not None:
        stated.insert(0, (body.status.conditions, body.metadata.generation))
    for found, generation in stated:
        stall = conditions.true(found, conditions.STALLED)
        if stall is not None and stall.observed_generation == generation:
            return stall.message
    return ""


def _optimizer_problem(asked: OptimizerConfig) -> str:
    if asked.type == ADAMW:
        return ""
    return f"optimizer_config.type is {asked.type}: models are trained by {ADAMW}, leave it out"
