"""Sampling clients, and their samples."""

from __future__ import annotations

from aiohttp import web

from espalier.api.trainablemodel import TrainableModelSpec
from espalier.core.names import BASE
from espalier.gateway.access.audit import ACT, Act, audited
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.offers import Offers, may_know_bases
from espalier.gateway.access.request_body import read_body
from espalier.gateway.access.rights import SAMPLE, SEE
from espalier.gateway.problems import RefusalError
from espalier.gateway.tinker import sampling
from espalier.gateway.tinker.bases import BASE_NAME, base_name, bases, new_model
from espalier.gateway.tinker.bodies import CreateSamplingSession, Sample
from espalier.gateway.tinker.futures import Future
from espalier.gateway.tinker.models import Models, model_id
from espalier.gateway.tinker.names import PREFIX, Sampler, Session, WeightsPath
from espalier.gateway.tinker.refusals import unknown
from espalier.gateway.tinker.served import session_of
from espalier.gateway.world.routing import Target, resolve
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName


class SamplingRoutes:
    """Handlers of create_sampling_session, samplers and asample."""

    def __init__(
        self,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        offers: Offers,
        models: Models,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._offers = offers
        self._models = models

    def add_to(self, router: web.UrlDispatcher, prefix: str) -> None:
        """Registers the routes below a prefix."""
        router.add_post(f"{prefix}/create_sampling_session", self.create)
        router.add_get(f"{prefix}/samplers/{{sampler}}", self.get)
        router.add_post(f"{prefix}/asample", self.sample)

    async def create(self, request: web.Request) -> web.Response:
        """A sampler of saved weights, of a model's head by its name, or of a base."""
        user = await self._callers.caller(request, "sample")
        asked = await read_body(request, CreateSamplingSession)
        session = session_of(self._watch.world, asked.session_id)
        number = asked.sampling_session_seq_id
        if asked.model_path is not None:
            sampler = await self._of_path(user, session, number, asked.model_path)
            name = base_name(self._watch.world, sampler.model)
            if asked.base_model not in (None, name):
                raise RefusalError(
                    422,
                    "InvalidRequest",
                    f"base_model is {asked.base_model}, and the weights are of {name}",
                    "Leave base_model out",
                )
        elif asked.base_model is not None:
            sampler = await self._of_name(request, user, session, number, asked.base_model)
        else:
            raise RefusalError(
                422, "InvalidRequest", "base_model and model_path are missing", "Give one of them"
            )
        return web.json_response(
            {"type": "create_sampling_session", "sampling_session_id": str(sampler)}
        )

    async def get(self, request: web.Request) -> web.Response:
        """What a sampler samples."""
        user = await self._callers.caller(request, "sample", "read")
        sampler = await self._readable(user, request.match_info["sampler"], SEE)
        world = self._watch.world
        body = {"sampler_id": str(sampler), "base_model": base_name(world, sampler.model)}
        if sampler.ref not in ("", BASE):
            path = WeightsPath(model_id(world, sampler.model), "sampler_weights", sampler.ref)
            body["model_path"] = str(path)
        return web.json_response(body)

    @audited("Sample")
    async def sample(self, request: web.Request) -> web.Response:
        """A future of samples; they are begun when it is first asked for."""
        user = await self._callers.caller(request, "sample")
        await self._callers.require_one_if_any(user)
        asked = await read_body(request, Sample)
        # Told where it is begun.
        request[ACT].told, request[ACT].target = False, asked.sampling_session_id
        sampler = await self._readable(user, asked.sampling_session_id, SAMPLE)
        request[ACT].of("TrainableModel", sampler.model, after=sampler.ref)
        if problem := sampling.problem(asked):
            raise RefusalError(422, "InvalidRequest", problem)
        details = asked.model_dump(
            exclude={"sampling_session_id", "seq_id", "type"}, exclude_defaults=True
        )
        future = Future("sample", str(sampler), asked.seq_id, details)
        ids = [f"{sampler}:{asked.seq_id}:{index}" for index in range(asked.num_samples)]
        return web.json_response({"request_id": str(future), "sample_sequence_ids": ids})

    async def _readable(self, user: User, text: str, right: tuple[str, str]) -> Sampler:
        sampler = Sampler.read(text)
        if sampler is None or sampler.model.namespace not in self._watch.world.namespaces:
            raise unknown("sampling_session_id", text)
        await self._auth.require(user, *right, sampler.model)
        return sampler

    async def _of_path(self, user: User, session: Session, number: int, path: str) -> Sampler:
        saved = await self._models.saved(user, path)
        model = saved.path.model.trained
        if model.namespace != session.namespace:
            session = Session(model.namespace, session.token)
        if saved.checkpoint:
            owner = self._watch.world.checkpoints[
                model.beside(saved.checkpoint)
            ].spec.model_ref.name
            known = self._watch.world.models
            model = model if model in known else model.beside(owner)
        return Sampler(session, number, model, saved.checkpoint or BASE)

    async def _of_name(
        self, request: web.Request, user: User, session: Session, number: int, name: str
    ) -> Sampler:
        world = self._watch.world
        model = NamespacedName(session.namespace, name.removeprefix(f"{session.namespace}/"))
        known = bases(world, self._offers.offers, session.namespace)
        if name in known:
            serving = await self._serving(request, user, session, number, (name, known[name]))
            return Sampler(session, number, serving, BASE)
        if model not in world.models or not await self._callers.may_see(user, model):
            told = known if await may_know_bases(self._auth, user, session.namespace) else ()
            raise RefusalError(
                404,
                "BaseNotFound",
                f"base_model: namespace {session.namespace} has no base {name[:200]!r}",
                f"Bases: {', '.join(sorted(told)) or 'none'}",
            )
        await self._auth.require(user, *SAMPLE, model)
        return Sampler(session, number, model, "")

    async def _serving(
        self,
        request: web.Request,
        user: User,
        session: Session,
        number: int,
        base: tuple[str, TrainableModelSpec],
    ) -> NamespacedName:
        """A model whose rollouts serve the base: one that is ready, else any, else a new one."""
        world, (name, template) = self._watch.world, base
        fitting = [
            model
            for model, body in sorted(world.models.items())
            if model.namespace == session.namespace
            and body.spec.rollout.replicas
            and base_name(world, model) == name
        ]
        allowed = [one for one in fitting if await self._auth.allowed(user, *SAMPLE, one)]
        # Any of them may be gone by now.
        found = [model for model in allowed if model in world.models]
        ready = (model for model in found if isinstance(resolve(world, model, BASE), Target))
        if serving := next(ready, None) or next(iter(found), None):
            return serving
        made = NamespacedName(session.namespace, f"{PREFIX}{session.token}-s{number}")
        # Only this is an act; most samplers are but names.
        request[ACT] = Act("Fork", f"TrainableModel {made}", before=name)
        # A key that may sample is none to make a model that takes GPUs.
        user.require_scope("train")
        await self._models.serve(
            user, made, new_model(template, {"type": "LoRA"}), {BASE_NAME: name}
        )
        return made
