"""A whole Espalier in one process, for clients: gateway, operator and trainers are the real ones.

The cluster is the one in memory with its node; a trainer pod that runs is a real trainer service
with the tiny model behind the pod's own loopback address. Only sampling is played: a rollout pod
answers with random tokens, in vLLM's form.
"""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import torch
from aiohttp import web
from tests.compat.relay import Relay
from tests.fakes.cluster import FakeCluster
from tests.simulation.kubelet import Kubelet
from tests.simulation.scripted import ScriptedRollouts, ScriptedTrainer
from tests.trainer import tiny

from espalier import identity
from espalier.api.model.adapter import Adapter
from espalier.controllers.peers.importer_client import ImporterClient
from espalier.controllers.peers.peer import PORT
from espalier.controllers.peers.trainer_client import TrainerClient
from espalier.controllers.process.operator import Operator
from espalier.core.manifests.installation import ChildSettings, Images
from espalier.core.names import GATEWAY_AUDIENCE, audience
from espalier.gateway.access.api_keys import ApiKeys
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.key_source import ClusterKeys
from espalier.gateway.access.offers import Offers
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.app import SERVER, make_app
from espalier.gateway.context import GatewayContext
from espalier.gateway.hud.delivery import COMMANDS
from espalier.gateway.world.watch import WorldWatch
from espalier.kube.cache import Cache
from espalier.kube.cluster import Extra, TokenReviewResult
from espalier.kube.objects import Body, ObjectKey
from espalier.podclient import pod_session
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.http.service import Service
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog

NAMESPACE, OTHER = "default", "other"
TRAINER, READER, REVOKED = "token-of-ann", "token-of-bob", "token-of-nobody"
TICK_SECONDS = 0.02
MAX_BODY_BYTES = 2**18
PATIENCE_SECONDS = 60.0
PRIVATE_KEY = identity.generate_private_key()
KEYS = identity.PublicKeys.of(PRIVATE_KEY, PRIVATE_KEY)
ADAPTER = tiny.ADAPTER.wire()


class Cluster(FakeCluster):
    """Ann may do everything in the default namespace, Bob may read there; nobody may elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        for token, name in ((TRAINER, "ann"), (READER, "bob")):
            self.tokens[token] = TokenReviewResult(True, name, audiences=(GATEWAY_AUDIENCE,))

    def _new(self, key: ObjectKey) -> Body:
        """With a uid as an API server gives it: HUD's client takes a UUID for a model's id."""
        made = super()._new(key)
        made["metadata"]["uid"] = str(uuid.uuid5(uuid.NAMESPACE_URL, made["metadata"]["uid"]))
        return made

    async def review_access(  # noqa: PLR0917 the port's signature
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        extra: Extra = (),
    ) -> bool:
        ann = ("ann", f"system:serviceaccount:{NAMESPACE}:ann")
        reads = verb == "get" or resource == "trainablemodels/sample"
        return namespace == NAMESPACE and (user in ann or reads)


@dataclass
class Mounted:
    """The public keys as all pods see them, replaced in place."""

    keys: identity.PublicKeys

    def now(self) -> identity.PublicKeys:
        return self.keys


@dataclass(frozen=True)
class Fault:
    """What dies when a trainer has received a command (``before``) or has applied it."""

    name: str
    kill: Callable[[Stage, str], Coroutine[Any, Any, None]]
    before: bool = False

    async def strike(self, stage: Stage, model: str, request: web.Request) -> web.StreamResponse:
        """Nothing of an answer leaves the trainer after this."""
        death = asyncio.create_task(self.kill(stage, model))
        stage.tasks.append(death)
        # What dies may be this trainer, and its requests with it.
        await asyncio.shield(death)
        # To a gateway that is dead, or whose client is gone.
        return web.Response(status=500)


class Trainer:
    """The process of one trainer pod: a service at the pod's address."""

    def __init__(self, stage: Stage, model: str, ip: str, uid: str) -> None:
        self.stage = stage
        self.model = model
        self.ip = ip
        self.uid = uid
        self.engine: Engine | None = None
        self._runner: web.AppRunner | None = None
        self._service: Service | None = None

    async def start(self) -> None:
        name = audience(NAMESPACE, self.model, "trainer", self.uid)
        self._service = Service(self.stage.keys, name, max_body_bytes=self.stage.max_body_bytes)
        app = self._service.app()
        app.middlewares.append(self._faulty)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.ip, PORT).start()
        await self._service.start(self._make)

    async def stop(self) -> None:
        assert self._runner is not None
        assert self._service is not None
        self._service.feed.close()
        await self._runner.cleanup()
        # In a process of its own a command under way would end with it. Here it goes on, and a
        # trainer whose log is closed under a command ends the process.
        await asyncio.to_thread(self._service._worker.shutdown)
        if self.engine is not None:
            self.engine.state.log.close()

    @web.middleware
    async def _faulty(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Lets the fault strike that is due for this command: before it is applied, or after."""
        command = request.path.removeprefix("/train/").removeprefix("tinker/")
        if command in COMMANDS:
            self.stage.commands.append((command, await request.read()))
        ready = self.engine is not None and self.engine.state.assigned is not None
        faults = self.stage.faults
        fault = faults.pop(0) if faults and ready and command in COMMANDS else None
        if fault is not None and fault.before:
            return await fault.strike(self.stage, self.model, request)
        response = await handler(request)
        if fault is not None:
            await fault.strike(self.stage, self.model, request)
        return response

    def _make(self, publish: Any) -> Engine:
        store = CheckpointStore(self.stage.volume, self.model)
        self.engine = Engine(
            TrainingState(
                model=self.model,
                base=self.stage.base,
                compute=LocalCompute(
                    tiny.policy(self.stage.volume, self.stage.base, self.stage.adapter(self.model))
                ),
                store=store,
                log=CommandLog(store.model_directory(self.model), lock_seconds=5.0),
            ),
            publish,
        )
        return self.engine


class Stage:
    """``url`` is the gateway's; ``gateways`` counts its lives."""

    def __init__(
        self, volume: Path, base: str, network: str, rollouts: ScriptedRollouts | None = None
    ) -> None:
        self.volume = volume
        self.base = base
        self.cluster = Cluster()
        # Bases on offer, from the gateway's next start on.
        self.offers = Offers()
        self.rollouts = rollouts or ScriptedRollouts()
        self.kubelet = Kubelet(self.cluster, ScriptedTrainer(), self.rollouts, now)
        self.kubelet.network = network
        self.kubelet.resolved = {"uri": "volume://bases/tiny", "revision": "1", "digest": base}
        self.trainers: dict[str, Trainer] = {}
        self.sampled: list[Body] = []
        # Of trainers that start from now on.
        self.max_body_bytes = MAX_BODY_BYTES
        # What befalls the next commands that reach a trainer; None: nothing.
        self.faults: list[Fault | None] = []
        # What reached a trainer: commands and their bodies.
        self.commands: list[tuple[str, bytes]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.make_context: Callable[[], GatewayContext] | None = None
        self.make_operator: Callable[[], Operator] | None = None
        self._operator: asyncio.Task[None] | None = None
        # What the pods mount: whose tokens they believe.
        self.keys = Mounted(KEYS)
        self.signer = identity.Signer(PRIVATE_KEY)
        self.tokens = TokenIssuer()
        # Who holds it keeps the node from doing anything.
        self.still = asyncio.Lock()
        self.relay = Relay()
        self._gateway: web.AppRunner | None = None
        self._port = 0
        self.ticked = asyncio.Event()
        self._samplers: dict[str, web.AppRunner] = {}
        # Rollouts of a chat after which it is answered as at first; 0: never.
        self.repeat = 0
        self._asked: Counter[str] = Counter()
        # What chats are answered with: three tokens of these.
        self.alphabet: Sequence[int] = range(97, 123)
        # The tokens of a completion.
        self.write: Callable[[random.Random], list[int]] = _letters

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.relay.port}"

    def body(self, kind: str, name: str) -> Body:
        return self.cluster.objects.get(ObjectKey(kind, NAMESPACE, name), {})

    def uid(self, model: str, namespace: str = NAMESPACE) -> str:
        uid: str = self.cluster.objects[ObjectKey("TrainableModel", namespace, model)]["metadata"][
            "uid"
        ]
        return uid

    def steps(self, model: str) -> int:
        """Applied optimizer steps, as the model's trainer counts them."""
        return len(self.engine(model).state.commits)

    def pending(self, model: str) -> int:
        """Gradient commands that wait for a step."""
        return len(self.engine(model).state.tallies)

    def engine(self, model: str) -> Engine:
        found = next(t for t in self.trainers.values() if t.model == model)
        assert found.engine is not None
        return found.engine

    def adapter(self, model: str) -> Adapter:
        """What of a model is trained."""
        return Adapter.model_validate(self.body("TrainableModel", model)["spec"]["adapter"])

    async def apply(self, kind: str, name: str, spec: Body, namespace: str = NAMESPACE) -> None:
        body = {"metadata": {"name": name, "namespace": namespace}, "spec": spec}
        await self.cluster.apply(kind, body, manager="kubectl")

    async def model(self, name: str, namespace: str = NAMESPACE) -> None:
        """A model with a client-driven run, as ``kubectl apply`` would make it."""
        spec = {
            "source": {"base": {"image": "registry.example/tiny:1"}},
            "adapter": ADAPTER,
            "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
        }
        run = {
            "modelRef": {"name": name},
            "driver": "Client",
            "steps": 1000,
        }
        await self.apply("TrainableModel", name, spec, namespace)
        await self.apply("TrainingRun", name, run, namespace)

    async def until(self, reached: Any, what: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not reached():
                await self.ticked.wait()

    async def training(self, model: str) -> None:
        """Waits until the model's trainer is assigned and its head served."""

        def ready() -> bool:
            head = self.body("CheckpointHead", model).get("status", {})
            engines = [t.engine for t in self.trainers.values() if t.model == model]
            return bool(
                head.get("current")
                and engines
                and engines[0]
                and engines[0].state.assigned is not None
            )

        await self.until(ready, f"{model} trains")

    async def restart_trainer(self, model: str) -> None:
        """The trainer's process dies and starts again in the same pod."""
        old = next(t for t in self.trainers.values() if t.model == model)
        await old.stop()
        (pod,) = (p for p in self.kubelet.pods("trainer") if p["status"]["podIP"] == old.ip)
        # Its operator assigns once for each start of a container.
        self.kubelet.restart_pod(pod)
        new = Trainer(self, model, old.ip, old.uid)
        self.trainers[old.ip] = new
        await new.start()

    async def start_operator(self) -> None:
        """An operator that remembers nothing of the one before it."""
        assert self.make_operator is not None
        self._operator = asyncio.create_task(self.make_operator().run(asyncio.Event()))

    async def stop_operator(self) -> None:
        assert self._operator is not None
        self._operator.cancel()
        await asyncio.gather(self._operator, return_exceptions=True)

    async def start_gateway(self) -> None:
        """A gateway that remembers nothing of the one before it, at the same address."""
        assert self.make_context is not None
        app = make_app(self.make_context(), lambda: "")
        self._gateway = web.AppRunner(app, shutdown_timeout=0.01, **SERVER)
        await self._gateway.setup()
        site = web.TCPSite(self._gateway, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self.relay.target = self._gateway.addresses[0][1]

    async def stop_gateway(self) -> None:
        assert self._gateway is not None
        await self._gateway.cleanup()

    async def tick(self) -> None:
        await self.kubelet.tick()
        wanted = {p["status"]["podIP"]: p for p in self.kubelet.pods("trainer")}
        for ip, pod in wanted.items():
            if ip not in self.trainers:
                metadata = pod["metadata"]
                self.trainers[ip] = Trainer(
                    self, metadata["labels"]["espalier.dev/model"], ip, metadata["uid"]
                )
                await self.trainers[ip].start()
        for ip in [ip for ip in self.trainers if ip not in wanted]:
            await self.trainers.pop(ip).stop()
        for pod in self.kubelet.pods("rollout"):
            ip = pod["status"]["podIP"]
            if ip not in self._samplers:
                self._samplers[ip] = await self._sampler(ip)

    async def _sampler(self, ip: str) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", partial(self._sample, ip))
        app.router.add_post("/v1/completions", partial(self._complete, ip))
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, ip, PORT).start()
        return runner

    async def _sample(self, ip: str, request: web.Request) -> web.Response:
        """vLLM's form: prompt tokens at the top level, tokens in the choice."""
        body = await request.json()
        self.sampled.append(body)
        if not self._serves(ip, body["model"]):
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        text = body["messages"][-1]["content"]
        text = text if isinstance(text, str) else text[0]["text"]
        answer: Body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
        }
        choices = [self._choice(body, text, index) for index in range(body.get("n") or 1)]
        answer |= {"choices": choices, "usage": None, "prompt_token_ids": None}
        if body.get("return_token_ids"):
            answer["prompt_token_ids"] = list(text.encode())
        return web.json_response(answer)

    async def _complete(self, ip: str, request: web.Request) -> web.Response:
        """A completion of tokens, as those of Tinker's clients ask for."""
        body = await request.json()
        self.sampled.append(body)
        if not self._serves(ip, body["model"]):
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        choices = []
        # Without a seed, what is asked again is answered otherwise.
        again = self._asked[str(body["prompt"])]
        self._asked[str(body["prompt"])] += 1
        for index in range(body["n"]):
            chance = random.Random(f"{body['prompt']}/{index}/{body.get('seed', again)}")
            drawn = self.write(chance)[: body["max_tokens"]]
            rows = [_likely(token, body["logprobs"]) for token in drawn]
            scored = {
                "token_logprobs": [-math.log(26)] * len(drawn),
                "top_logprobs": [{f"token_id:{t}": lp for t, lp in row.items()} for row in rows],
            }
            reason = "length" if len(drawn) == body["max_tokens"] else "stop"
            choice: Body = {"index": index, "finish_reason": reason, "token_ids": drawn}
            choice |= {"text": "", "logprobs": scored, "prompt_token_ids": body["prompt"]}
            if body.get("prompt_logprobs") is not None:
                width = body["prompt_logprobs"]
                given = [_likely(token, width) for token in body["prompt"]]
                choice["prompt_logprobs"] = [
                    {str(t): {"logprob": lp, "rank": 1} for t, lp in row.items()} for row in given
                ]
                choice["prompt_logprobs"][0] = None
            choices.append(choice)
        return web.json_response({"object": "text_completion", "choices": choices})

    def _serves(self, ip: str, adapter: str) -> bool:
        """What a rollout has loaded, or finds on the volume when it is asked for it."""
        digest = adapter.partition("@")[2]
        found = self.volume.glob(f"checkpoints/*/sha256-{digest}*") if digest else ()
        return adapter in ("base", *self.rollouts.serving.get(ip, ())) or any(found)

    def _choice(self, body: Body, text: str, index: int) -> Body:
        """Three tokens, drawn by what is asked and how often it was."""
        number = self._asked[text] % self.repeat if self.repeat else self._asked[text]
        self._asked[text] += 1
        letters = random.Random(f"{text}/{number}")
        tokens = [letters.choice(self.alphabet) for _ in range(3)]
        entries = [{"token": chr(t), "logprob": -math.log(26), "top_logprobs": []} for t in tokens]
        message = {"role": "assistant", "content": "".join(map(chr, tokens))}
        choice: Body = {"index": index, "message": message, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": entries}
        if body.get("return_token_ids"):
            choice["token_ids"] = tokens
        return choice

    async def close(self) -> None:
        await asyncio.gather(*self.tasks)
        for trainer in self.trainers.values():
            await trainer.stop()
        for sampler in self._samplers.values():
            await sampler.cleanup()


def _letters(chance: random.Random) -> list[int]:
    return [chance.randrange(97, 123) for _ in range(4)]


def _likely(token: int, width: int) -> dict[int, float]:
    """A token with its log-prob, and others that are as likely."""
    return {97 + (token + more) % 26: -math.log(26) for more in range(width)} | {
        token: -math.log(26)
    }


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@asynccontextmanager
async def staged(
    volume: Path, base: str, network: str, rollouts: ScriptedRollouts | None = None
) -> AsyncIterator[Stage]:
    torch.set_num_threads(1)
    stage = Stage(volume, base, network, rollouts)
    settings = ChildSettings(
        Images(trainer="trainer:1", rollout="rollout:1", runner="runner:1"), "pem", "http://gateway"
    )
    stage.tokens.use(PRIVATE_KEY)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        upstream = await stack.enter_async_context(pod_session())

        def cache() -> Cache:
            fresh = Cache()
            stage.cluster.feed(fresh)
            return fresh

        def operator() -> Operator:
            return Operator(
                stage.cluster,
                cache(),
                TrainerClient(session, stage.signer),
                stage.rollouts,
                settings,
                importer=ImporterClient(session, stage.signer),
                now=now,
            )

        def context() -> GatewayContext:
            view = WorldWatch(cache(), (NAMESPACE, OTHER))
            keys = ApiKeys(ClusterKeys(stage.cluster), (NAMESPACE, OTHER))
            auth = Authenticator(stage.cluster, keys=keys)
            return GatewayContext(view, stage.cluster, auth, stage.tokens, upstream, stage.offers)

        stage.make_context, stage.make_operator = context, operator
        await stage.relay.start()
        await stage.start_gateway()
        await stage.start_operator()
        life = asyncio.create_task(_live(stage))
        try:
            yield stage
        finally:
            await stage.stop_operator()
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            await stage.relay.close()
            await stage.stop_gateway()
            await stage.close()


async def _live(stage: Stage) -> None:
    """The node's own life, beside the test."""
    while True:
        async with stage.still:
            await stage.tick()
        stage.ticked.set()
        stage.ticked = asyncio.Event()
        await asyncio.sleep(TICK_SECONDS)
