"""Downloads of weights: links that carry their own proof, and the files behind them.

The SDK fetches a link without its key, so whoever holds one may read that file until it expires.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import aiohttp
from aiohttp import web

from espalier.gateway.access.answer_writer import write_part
from espalier.gateway.access.audit import ACT, audited
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.routes.trainer_lookup import TrainerLookup
from espalier.gateway.tinker.models import Models
from espalier.gateway.tinker.names import EXTERNAL, WeightsPath
from espalier.gateway.tinker.refusals import unknown
from espalier.gateway.tinker.served import model_of
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.tinker.commands import ADAPTER_FILES, FILES

LIFETIME = timedelta(hours=1)
AUDIENCE = "espalier-download"
# The part of a link's path that is its proof.
TICKET = "ticket"
START_SECONDS = 30.0
# Anywhere in a path: one that is not quite that of a link has it too.
_PROOF = re.compile(r"[\w-]{16,}\.[\w-]{16,}\.[\w-]{16,}")
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=60.0)


class DownloadRoutes:
    """Handlers of external_weights_urls, and of the links that it gives."""

    def __init__(  # noqa: PLR0917 what the handlers share
        self,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        models: Models,
        trainers: TrainerLookup,
        pods: PodCalls,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._models = models
        self._trainers = trainers
        self._pods = pods

    def add_to(self, router: web.UrlDispatcher, prefix: str) -> None:
        """Registers the routes below a prefix."""
        saved = f"{prefix}/training_runs/{{run}}/checkpoints/{EXTERNAL}/{{name}}"
        router.add_get(f"{saved}/external_weights_urls", self.links)
        router.add_get(f"{prefix}/files/{{{TICKET}}}/{{file}}", self.file)

    @audited("Download")
    async def links(self, request: web.Request) -> web.Response:
        """A link for each file of weights that were saved for download."""
        user = await self._callers.caller(request, "train")
        request[ACT].target = request.match_info["run"]
        model = model_of(self._watch.world, request.match_info["run"], "training_run_id")
        path = WeightsPath(model, EXTERNAL, request.match_info["name"])
        request[ACT].target = str(path)
        saved = await self._models.saved(user, str(path))
        checkpoint = self._watch.world.checkpoints[model.trained.beside(saved.checkpoint)]
        expires = datetime.now(UTC) + LIFETIME
        base = request.url.path.partition("/training_runs/")[0]
        # Of a proxy that ends TLS; the link is told to nobody but its caller.
        secure = "https" in (request.scheme, request.headers.get("X-Forwarded-Proto"))
        origin = f"{'https' if secure else 'http'}://{request.host}"
        urls = {}
        for file in ADAPTER_FILES:
            claims = {
                "aud": AUDIENCE,
                "exp": expires,
                "namespace": model.trained.namespace,
                "model": model.trained.name,
                "digest": checkpoint.spec.digest,
                "file": file,
            }
            ticket = self._pods.tokens.sign(claims)
            urls[file] = f"{origin}{base}/files/{ticket}/{file}"
        return web.json_response({"urls": urls, "expires": expires.isoformat()})

    async def file(self, request: web.Request) -> web.StreamResponse:
        """The file of a link, as the model's trainer sends it."""
        found = self._pods.tokens.read(request.match_info[TICKET], AUDIENCE)
        if found is None or found["file"] != request.match_info["file"]:
            raise RefusalError(
                401,
                "LinkExpired",
                "this link to weights has expired, or is not one of this gateway",
                "Ask for new ones: get_external_weights_urls, or tinker checkpoint download",
            )
        model = NamespacedName(found["namespace"], found["model"])
        if model not in self._watch.world.models:
            raise unknown("training_run_id", str(model))
        pod = await self._trainers.ready(model, START_SECONDS)
        url = f"http://{pod.address}{FILES}/{found['digest']}/{found['file']}"
        try:
            async with self._pods.session.get(
                url, headers=self._pods.tokens.header(model, pod), timeout=_TIMEOUT
            ) as answer:
                if answer.status == HTTPStatus.NOT_FOUND:
                    raise RefusalError(
                        404, "CheckpointNotFound", f"the volume of {model} has no such weights"
                    )
                if answer.status != HTTPStatus.OK:
                    raise not_ready(
                        "TrainerRefused", f"the trainer of {model} answered {answer.status}"
                    )
                response = web.StreamResponse()
                response.content_type = "application/octet-stream"
                response.content_length = answer.content_length
                await response.prepare(request)
                async for part in answer.content.iter_any():
                    await write_part(request, response, part)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise not_ready("TrainerUnreachable", f"the trainer of {model}: {error}") from error


def without_proof(path: str) -> str:
    """A path as a log may have it: without what looks like a token."""
    return _PROOF.sub(f"{{{TICKET}}}", path)
