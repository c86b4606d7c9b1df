"""Sessions, and what a client asks before it has one. A session is its name: nothing is kept of it,
so it lives through every restart and needs no heartbeat.
"""

from __future__ import annotations

import uuid

from aiohttp import web

from espalier.core.api_keys import SCOPES
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.offers import Offers, may_fork
from espalier.gateway.access.request_body import read_body, read_object
from espalier.gateway.access.rights import SAMPLE
from espalier.gateway.tinker.bases import bases
from espalier.gateway.tinker.bodies import CreateSession, OfSession
from espalier.gateway.tinker.lora import UNEMBED_WARNING
from espalier.gateway.tinker.names import Session
from espalier.gateway.tinker.namespaces import Namespaces
from espalier.gateway.tinker.refusals import unknown
from espalier.gateway.tinker.sdk_versions import version_note
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName

IDEMPOTENCY_KEY = "X-Idempotency-Key"
# What the client takes from its server, by the names of its own type. Requests are sent compressed,
# in parallel, and in chunks well below what a body may have.
CLIENT_CONFIG: dict[str, object] = {
    "pjwt_auth_enabled": False,
    "use_pyqwest_transport": False,
    "parallel_fwdbwd_chunks": True,
    "proto_compress_fwdbwd": True,
    "fwdbwd_max_chunk_len": 1024,
    "fwdbwd_max_chunk_bytes_count": 5_000_000,
    "sample_max_concurrent_requests": 2000,
    "sample_use_retrieve_futures": False,
    "sample_join_sampling_session": False,
    "custom_loss_server_side": False,
    "billing_exception_max_pause_duration_sec": 3600,
    # Of clients 0.22 to 0.24: they send protobuf, and forward() as forward_backward.
    "proto_write_fwdbwd": True,
    "fwd_via_fwdbwd": True,
}
DYNAMIC_CONFIG: dict[str, object] = {
    "refresh_interval_sec": 300,
    "sample_cancel_enabled": False,
    "sample_cancel_max_batch_size": 64,
}


class SessionRoutes:
    """Handlers of client config, sessions, telemetry and capabilities."""

    def __init__(
        self,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        offers: Offers,
        namespaces: Namespaces,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._offers = offers
        self._namespaces = namespaces

    def add_to(self, router: web.UrlDispatcher, prefix: str) -> None:
        """Registers the routes below a prefix."""
        router.add_post(f"{prefix}/client/config", self.client_config)
        router.add_post(f"{prefix}/client/dynamic_config", self.dynamic_config)
        router.add_post(f"{prefix}/create_session", self.create)
        router.add_post(f"{prefix}/session_heartbeat", self.heartbeat)
        router.add_post(f"{prefix}/sessions/{{session}}/finish", self.finish)
        router.add_post(f"{prefix}/telemetry", self.telemetry)
        router.add_get(f"{prefix}/get_server_capabilities", self.capabilities)
        router.add_get(f"{prefix}/healthz", self.health)

    async def client_config(self, request: web.Request) -> web.Response:
        """The client's flags."""
        await self._callers.caller(request, *SCOPES)
        return web.json_response(CLIENT_CONFIG)

    async def dynamic_config(self, request: web.Request) -> web.Response:
        """The flags that a client asks for again and again."""
        await self._callers.caller(request, *SCOPES)
        return web.json_response(DYNAMIC_CONFIG)

    async def create(self, request: web.Request) -> web.Response:
        """A session in the namespace of its project, or of the caller's service account."""
        user = await self._callers.caller(request, *SCOPES)
        asked = await read_body(request, CreateSession)
        notes = [version_note(asked.sdk_version), _unkept(asked), UNEMBED_WARNING]
        namespace = await self._namespaces.of(user, asked.project_id)
        key = request.headers.get(IDEMPOTENCY_KEY) or uuid.uuid4().hex
        session = Session.new(namespace, user.name, key)
        return web.json_response(
            {
                "type": "create_session",
                "session_id": str(session),
                "info_message": f"Models of this session are made in namespace {namespace}, as "
                f"TrainableModels tk-{session.token}-0, -1 and so on",
                "warning_message": ". ".join(filter(None, notes)),
            }
        )

    async def heartbeat(self, request: web.Request) -> web.Response:
        """A session lives whether it beats or not: an idle trainer is freed by its own rule."""
        await self._callers.caller(request, *SCOPES)
        asked = await read_body(request, OfSession)
        _session(asked.session_id)
        return web.json_response({"type": "session_heartbeat"})

    async def finish(self, request: web.Request) -> web.Response:
        """The client is done; its models stay until somebody deletes them."""
        await self._callers.caller(request, *SCOPES)
        _session(request.match_info["session"])
        return web.json_response({})

    async def telemetry(self, request: web.Request) -> web.Response:
        """Takes what the client reports, and keeps none of it."""
        await self._callers.caller(request, *SCOPES)
        await read_object(request)
        return web.json_response({"status": "accepted"})

    async def capabilities(self, request: web.Request) -> web.Response:
        """The bases of the served namespaces, and whether the caller may make models of them."""
        user = await self._callers.caller(request, *SCOPES)
        world = self._watch.world
        models: dict[str, dict[str, object]] = {}
        for namespace in world.namespaces:
            trainable = await may_fork(self._auth, user, namespace)
            sampled = NamespacedName(namespace, "")
            if not trainable and not await self._auth.allowed(user, *SAMPLE, sampled):
                continue
            for name, spec in bases(world, self._offers.offers, namespace).items():
                known = models.setdefault(name, {"model_name": name, "sampleable": True})
                known["trainable"] = trainable or known.get("trainable", False)
                known["max_context_length"] = spec.rollout.max_model_tokens
        return web.json_response({"supported_models": list(models.values())})

    async def health(self, _: web.Request) -> web.Response:
        """The gateway runs."""
        return web.json_response({"status": "ok"})


def _unkept(asked: CreateSession) -> str:
    given = [name for name in ("tags", "user_metadata", "display_name") if getattr(asked, name)]
    if not given:
        return ""
    return f"{' and '.join(given)} of a session are kept nowhere: user_metadata of a model is"


def _session(text: str) -> Session:
    session = Session.read(text)
    if session is None:
        raise unknown("session_id", text)
    return session
