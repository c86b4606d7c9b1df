"""Making a model, training it, saving it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from aiohttp import web
from google.protobuf.message import DecodeError
from pydantic_core import to_json

from espalier.core.api_keys import SCOPES
from espalier.gateway.access.audit import ACT, Act, audited
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.callers import SEEN_SECONDS, Callers
from espalier.gateway.access.request_body import (
    as_body,
    as_object,
    read_body,
    read_bytes,
    read_object,
)
from espalier.gateway.access.rights import SEE
from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.training_access import TrainingAccess
from espalier.gateway.tinker import lora
from espalier.gateway.tinker.bases import base_name, tokenizer
from espalier.gateway.tinker.bodies import (
    CreateModel,
    LoadWeights,
    OfModel,
    SaveFiles,
    SaveWeights,
)
from espalier.gateway.tinker.commands import Commands
from espalier.gateway.tinker.futures import Future, failed
from espalier.gateway.tinker.inflate import inflated
from espalier.gateway.tinker.models import Models
from espalier.gateway.tinker.names import TinkerModel
from espalier.gateway.tinker.refusals import passes, unknown
from espalier.gateway.tinker.save_requests import (
    SAVE,
    SAVE_FILES,
    SAVE_FOR_SAMPLER,
    checked_files,
    checked_save,
    only_seen,
    only_weights,
)
from espalier.gateway.tinker.served import model_of, session_of
from espalier.gateway.world.watch import WorldWatch
from espalier.tinker.messages_pb2 import ForwardBackwardRequest
from espalier.tinker.results import PROTOBUF


class TrainingRoutes:
    """Handlers of create_model, load_weights, get_info, and the commands of a trainer."""

    def __init__(  # noqa: PLR0917 what the handlers share
        self,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        access: TrainingAccess,
        models: Models,
        commands: Commands,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._access = access
        self._models = models
        self._commands = commands

    def add_to(self, router: web.UrlDispatcher, prefix: str) -> None:
        """Registers the routes below a prefix."""
        router.add_post(f"{prefix}/create_model", self.create_model)
        router.add_post(f"{prefix}/load_weights", self.load_weights)
        router.add_post(f"{prefix}/get_info", self.get_info)
        router.add_post(f"{prefix}/forward_backward", self.forward_backward)
        router.add_post(f"{prefix}/optim_step", self.optim_step)
        router.add_post(f"{prefix}/{SAVE}", self.save)
        router.add_post(f"{prefix}/{SAVE_FOR_SAMPLER}", self.save)
        router.add_post(f"{prefix}/{SAVE_FILES}", self.save_files)

    @audited("Fork")
    async def create_model(self, request: web.Request) -> web.Response:
        """A future of a model that its trainer is ready to train."""
        user = await self._callers.caller(request, "train")
        asked = await read_body(request, CreateModel)
        session = session_of(self._watch.world, asked.session_id)
        request[ACT].before = asked.base_model
        future = await self._models.create(user, session, asked)
        request[ACT].target = f"model {future.subject}"
        return _promised(future)

    @audited("Fork")
    async def load_weights(self, request: web.Request) -> web.Response:
        """A new model from saved weights; of older clients, an existing one set back to them."""
        user = await self._callers.caller(request, "train")
        asked = await read_body(request, LoadWeights)
        request[ACT].before, request[ACT].target = asked.path, f"model {asked.model_id or ''}"
        if asked.weights_access_token:
            raise RefusalError(
                422,
                "InvalidRequest",
                "weights_access_token has no meaning here",
                "Leave it out: who may get a TrainableModel may load its weights",
            )
        if asked.session_id is not None and asked.model_seq_id is not None:
            session = session_of(self._watch.world, asked.session_id)
            future = await self._models.load(user, session, asked)
            request[ACT].target = f"model {future.subject}"
            return _promised(future)
        if asked.model_id is None or asked.seq_id is None:
            raise RefusalError(
                422,
                "InvalidRequest",
                "model_id: neither a session nor a model is named",
                "Send session_id and model_seq_id for a new model, or model_id and seq_id",
            )
        model = await self._model(user, asked.model_id)
        return _promised(await self._set_back(user, model, asked.seq_id, asked))

    async def get_info(self, request: web.Request) -> web.Response:
        """What a model is."""
        user = await self._callers.caller(request, *SCOPES)
        asked = await read_body(request, OfModel)
        model = model_of(self._watch.world, asked.model_id)
        await self._auth.require(user, *SEE, model.trained)
        known = await self._watch.wait_for(
            lambda world: world.models.get(model.trained), SEEN_SECONDS
        )
        if known is None:
            raise unknown("model_id", asked.model_id)
        world = self._watch.world
        name = base_name(world, model.trained)
        adapter = known.spec.adapter
        return web.json_response(
            {
                "type": "get_info",
                "model_id": asked.model_id,
                "model_name": name,
                "model_data": {
                    "model_name": name,
                    "tokenizer_id": tokenizer(world, model.trained),
                },
                "is_lora": adapter.type == "LoRA",
                "lora_rank": adapter.lora_rank or None,
                "optimizer_config": {"type": "adamw"},
                **lora.trains(adapter),
            }
        )

    @audited("Train")
    async def forward_backward(self, request: web.Request) -> web.Response:
        """Gradients, or log-probs alone."""
        request[ACT].told = False
        user = await self._callers.caller(request, "train")
        if request.content_type != PROTOBUF:
            raise RefusalError(
                415,
                "ProtobufWanted",
                f"forward_backward is sent as {PROTOBUF}, not {request.content_type[:64]}",
                "Use a client of 0.22 or newer",
            )
        body = await inflated(request, await read_bytes(request))
        message = ForwardBackwardRequest()
        try:
            message.ParseFromString(body)
        except DecodeError as error:
            raise RefusalError(
                422, "InvalidRequest", "the body is no ForwardBackwardRequest", "Send it whole"
            ) from error
        request[ACT].target, request[ACT].after = f"model {message.model_id}", "forward-backward"
        model = await self._model(user, message.model_id)
        await self._commands.submit(user, model, message.seq_id, "forward-backward", body, PROTOBUF)
        return _promised(Future("train", str(model), message.seq_id))

    @audited("Train")
    async def optim_step(self, request: web.Request) -> web.Response:
        """A step of the optimizer."""
        user = await self._callers.caller(request, "train")
        body = await read_bytes(request)
        step = as_object(body)
        request[ACT].target, request[ACT].after = f"model {step.get('model_id')}", "optim-step"
        model, number = await self._numbered(user, step)
        await self._commands.submit(user, model, number, "optim-step", body)
        return _promised(Future("train", str(model), number))

    @audited("Save")
    async def save(self, request: web.Request) -> web.Response:
        """Saves the weights as they are after the commands before it."""
        user = await self._callers.caller(request, "train")
        body = await read_object(request)
        _about(request[ACT], body)
        model, number = await self._numbered(user, body)
        kind = request.path.rpartition("/")[2]
        try:
            asked = checked_save(as_body({**body, "type": kind}, SaveWeights))
        except RefusalError as refusal:
            # Its number is used up all the same: those after it would wait for it.
            await self._pass_over(user, model, number)
            return _promised(failed(str(model), refusal.message))
        sent = asked.model_dump(exclude_defaults=True) | {"type": kind}
        await self._commands.submit(user, model, number, "save-weights", to_json(sent))
        details = asked.model_dump(exclude={"model_id", "seq_id"}, exclude_defaults=True)
        if kind == SAVE and asked.path is None:
            details["path"] = f"{number:06d}"
        return _promised(Future("save", str(model), number, {**details, "type": kind}))

    @audited("Save")
    async def save_files(self, request: web.Request) -> web.Response:
        """Names weights for download, as they are after the commands before it."""
        user = await self._callers.caller(request, "train")
        body = await read_object(request)
        _about(request[ACT], body)
        model, number = await self._numbered(user, body)
        await self._pass_over(user, model, number)
        try:
            asked = checked_files(as_body({**body, "type": SAVE_FILES}, SaveFiles))
        except RefusalError as refusal:
            return _promised(failed(str(model), refusal.message))
        details = {"path": asked.path, "ttl_seconds": asked.ttl_seconds, "type": SAVE_FILES}
        return _promised(Future("save", str(model), number, details))

    async def _set_back(
        self, user: User, model: TinkerModel, number: int, asked: LoadWeights
    ) -> Future:
        try:
            only_weights(asked)
            saved = await self._models.saved(user, asked.path)
            checkpoint = self._watch.world.checkpoints.get(model.trained.beside(saved.checkpoint))
            if checkpoint is None:
                raise RefusalError(
                    422,
                    "NothingTrained",
                    f"path: {asked.path} is the model before its first step",
                    "Create a training client from it: create_training_client_from_state",
                )
            only_seen(self._watch.world.models.get(model.trained), checkpoint, asked.path)
        except RefusalError as refusal:
            if passes(refusal):
                raise
            await self._pass_over(user, model, number)
            return failed(str(model), refusal.message)
        command = {
            "model_id": str(model),
            "seq_id": number,
            "digest": checkpoint.spec.digest,
            "optimizer": asked.optimizer,
            "type": "load_weights",
        }
        await self._commands.submit(user, model, number, "load-weights", to_json(command))
        return Future("train", str(model), number)

    async def _pass_over(self, user: User, model: TinkerModel, number: int) -> None:
        """Uses up a number of which nothing comes, by a save; its result says where training is."""
        plain = {"model_id": str(model), "seq_id": number, "type": SAVE}
        await self._commands.submit(user, model, number, "save-weights", to_json(plain))

    async def _numbered(self, user: User, body: dict[str, Any]) -> tuple[TinkerModel, int]:
        number = body.get("seq_id")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 2**63:
            raise RefusalError(
                422,
                "InvalidRequest",
                f"seq_id is {str(number)[:32]}",
                "Number the requests of a model from 1",
            )
        return await self._model(user, str(body.get("model_id"))), number

    async def _model(self, user: User, text: str) -> TinkerModel:
        """The model of an id, which the caller may train now."""
        model = model_of(self._watch.world, text)
        await self._auth.require(user, *SEE, model.trained)
        # Another replica may have made it just now.
        if not await self._watch.wait_for(
            lambda world: model.trained in world.models or None, SEEN_SECONDS
        ):
            raise unknown("model_id", text)
        try:
            await self._access.require(user, model.trained)
        except RefusalError as refusal:
            if refusal.status != HTTPStatus.CONFLICT:
                raise
            # Of a run that is suspended too: whoever suspended it may let it go on.
            raise self._access.held(model.trained) or refusal from refusal
        return model


def _about(act: Act, body: dict[str, Any]) -> None:
    """Says which model a save is of, and the name that it gives."""
    act.target, act.after = f"model {body.get('model_id')}", str(body.get("path", ""))


def _promised(future: Future) -> web.Response:
    body = {"request_id": str(future)}
    if future.kind != "failed":
        body["model_id"] = future.subject
    return web.json_response(body)
