"""A gateway and trainer in memory: the real protocol over real HTTP, without weights."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import web

UID = "6f1f9c1e"


def spec(**changes: Any) -> dict[str, Any]:
    """The spec of a run on the ConfigMap ``digits``."""
    return {
        "modelRef": {"name": "tiny"},
        "driver": "Runner",
        "loss": {"name": "importance_sampling"},
        "groupSize": 4,
        "groupsPerStep": 2,
        "learningRate": "1e-3",
        "steps": 3,
        "sampling": {"temperature": "1.0", "maxTokens": 4},
        "taskset": {
            "seed": 1,
            "size": 8,
            "configMap": {"name": "digits"},
            "answerExtraction": "LastNumber",
        },
        **changes,
    }


def half_right(prompt: str, index: int) -> str:
    """Repeats the digit of ``d=`` in every other completion."""
    return prompt.split("=", maxsplit=1)[0] if index % 2 == 0 else "none"


class StandIn:
    """One model, one run. Tests set its fields and read ``commands`` and ``samples``.

    Attributes:
        faults: by route, what the next requests meet: a status to refuse with, ``drop`` to close
            the connection before the command is applied, ``lose`` to close it after.
        hooks: by route, called once before the next request is handled.
        retry_after: header of refusals.
        context: characters of a prompt, beyond which it is refused as vLLM does.
        seconds: for which the next completions, and commands by name, are held up.
    """

    def __init__(self, **changes: Any) -> None:
        self.spec = spec(**changes)
        self.suspended = False
        self.paused = False
        self.paused_for = "HeadPinned"
        self.active = True
        # Whether the run is over with its last step, as it is for a real gateway.
        self.ends = False
        # The refusal of whoever asks for the trainer's state once the run is over.
        self.then = "NoActiveRun"
        self.run = f"run/{UID}"
        self.term = 1
        self.step = 0
        self.run_step = 0
        self.pending = 0
        # Whether the trainer has started again and could not restore what is pending.
        self.lost = False
        self.checkpoint = ""
        self.cursor: dict[str, Any] = {}
        # What is left of the latest step's batch, and what the run binds its client to.
        self.batch: dict[str, Any] | None = None
        self.declared: dict[str, Any] = {}
        self.answer: Callable[[str, int], str] = half_right
        self.finish_reason = "stop"
        self.faults: dict[str, deque[int | str]] = {}
        self.hooks: dict[str, Callable[[], None]] = {}
        self.retry_after = ""
        self.context = 1_000_000
        self.seconds: dict[str, deque[float]] = {}
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str] = []
        self.samples: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.head = ""
        self.moves: list[str] = []
        # Greedy completions wait for the first; steps set theirs.
        self.greedy_waits_for: asyncio.Event | None = None
        self.committed: dict[int, asyncio.Event] = {}
        # By checkpoint, or run, and name: what evaluations found.
        self.evaluations: dict[tuple[str, str], dict[str, Any]] = {}
        # What the runner told of rounds without a step.
        self.barren: list[dict[str, Any]] = []
        self._results: dict[str, tuple[bytes, Any]] = {}

    def app(self) -> web.Application:
        """The routes that a client uses."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/runs/{namespace}/{name}", self._run)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/checkpoints/{namespace}/{name}/evaluations", self._evaluation)
        app.router.add_post("/v1/runs/{namespace}/{name}/evaluations", self._evaluation)
        app.router.add_put("/v1/runs/{namespace}/{name}/barren-rounds", self._barren)
        app.router.add_get("/v2/models/{namespace}/{slug}/checkpoints", self._checkpoints)
        app.router.add_put("/v2/models/{namespace}/{slug}/head", self._set_head)
        prefix = "/v1/models/{namespace}/{slug}/train"
        app.router.add_get(f"{prefix}/state", self._state)
        app.router.add_get(f"{prefix}/losses", self._losses)
        app.router.add_get(f"{prefix}/batch", self._batch)
        app.router.add_get(f"{prefix}/declared", self._declared)
        for command in ("forward-backward", "forward", "backward", "zero-grad", "optim-step"):
            app.router.add_post(f"{prefix}/{command}", self._command)
        return app

    def fail(self, route: str, *faults: int | str) -> None:
        """Queues faults for a route: run, chat, state or a command."""
        self.faults.setdefault(route, deque()).extend(faults)

    def kinds(self) -> list[str]:
        """The applied commands, in order."""
        return [kind for kind, _ in self.commands]

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        """The bodies of the applied commands of a kind."""
        return [body for applied, body in self.commands if applied == kind]

    async def _run(self, request: web.Request) -> web.Response:
        if refused := self._meet("run", request):
            return refused
        return web.json_response(
            {
                "uid": UID,
                "model": "tiny",
                "spec": self.spec,
                "term": self.term,
                "suspended": self.suspended,
                "paused": self.paused,
                "over": self.ends and self.run_step >= self.spec["steps"],
            }
        )

    async def _state(self, request: web.Request) -> web.Response:
        if refused := self._meet("state", request) or self._unready():
            return refused
        return web.json_response(self._trainer_state())

    async def _batch(self, request: web.Request) -> web.Response:
        return web.json_response({"batch": self.batch})

    async def _declared(self, request: web.Request) -> web.Response:
        return web.json_response(self.declared)

    async def _losses(self, request: web.Request) -> web.Response:
        return web.json_response({"losses": ["importance_sampling", "ppo"]})

    async def _checkpoints(self, request: web.Request) -> web.Response:
        names = [f"tiny-{step:06d}" for step in range(1, self.step + 1)]
        return web.json_response(
            [{"id": name, "name": name, "is_active": name == self.head} for name in names]
        )

    async def _set_head(self, request: web.Request) -> web.Response:
        wanted = (await request.json())["checkpoint_id"]
        if wanted not in {f"tiny-{step:06d}" for step in range(1, self.step + 1)}:
            detail = f"model tiny has no checkpoint {wanted!r}"
            problem = {"reason": "CheckpointNotFound", "detail": detail, "remedy": "name another"}
            return web.json_response(problem, status=404)
        self.head = wanted
        self.moves.append(self.head)
        return web.json_response({"id": self.head})

    async def _evaluation(self, request: web.Request) -> web.Response:
        if refused := self._meet("evaluation", request):
            return refused
        body = await request.json()
        self.evaluations[request.match_info["name"], body["name"]] = body
        return web.json_response({})

    async def _barren(self, request: web.Request) -> web.Response:
        if refused := self._meet("barren-rounds", request):
            return refused
        self.barren.append(await request.json())
        return web.json_response({})

    async def _chat(self, request: web.Request) -> web.Response:
        if refused := self._meet("chat", request):
            return refused
        body = await request.json()
        self.samples.append(body)
        await self._held_up("chat")
        if self.greedy_waits_for is not None and body["temperature"] == 0.0:
            await self.greedy_waits_for.wait()
        prompt = body["messages"][-1]["content"]
        if len(prompt) > self.context:
            detail = f"This model's maximum context length is {self.context} tokens. Too many came."
            return web.json_response({"detail": detail, "reason": "Http400"}, status=400)
        choices = []
        for index in range(body["n"]):
            text = self.answer(prompt, index)
            tokens = [*text.encode(), 0]
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": self.finish_reason,
                    "logprobs": {"content": [{"token": "", "logprob": -0.5} for _ in tokens]},
                    "token_ids": tokens,
                    "prompt_token_ids": list(prompt.encode()),
                }
            )
        slug, _, ref = body["model"].partition("@")
        sampled = {"Espalier-Checkpoint": ref or self.head or "base"}
        return web.json_response({"model": slug, "choices": choices[::-1]}, headers=sampled)

    async def _command(self, request: web.Request) -> web.Response:
        kind = request.path.rsplit("/", 1)[1]
        await self._held_up(kind)
        fault = self._next_fault(kind)
        if isinstance(fault, int) or fault == "drop":
            return self._refuse(fault, request)
        if refused := self._unready():
            return refused
        key, content = request.headers["Idempotency-Key"], await request.read()
        self.keys.append(key)
        result = self._once(kind, key, content, request.headers.get("Espalier-Term"))
        if isinstance(result, web.Response):
            return result
        if fault == "lose":
            return self._refuse("drop", request)
        headers = {"Espalier-Promotion": "Served"} if kind == "optim-step" else {}
        return web.json_response(result, headers=headers)

    def _once(
        self, kind: str, key: str, content: bytes, term: str | None
    ) -> dict[str, Any] | web.Response:
        if key in self._results:
            known, result = self._results[key]
            return result if known == content else problem(422, "KeyReused")
        if term is not None and int(term) != self.term:
            return problem(409, "StaleTerm")
        if self.lost and kind != "zero-grad":
            return problem(409, "GradientsLost")
        if kind == "optim-step" and not self.pending:
            return problem(409, "NoGradients")
        body = json.loads(content)
        result = self._apply(kind, body)
        self.commands.append((kind, body))
        self._results[key] = (content, result)
        return result

    def _apply(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind in ("forward-backward", "backward"):
            self.pending += 1
            return {"metrics": {"loss:sum": 0.0}, "num_datums": len(body.get("inputs", []))}
        if kind == "forward":
            return {"forward_id": "f1", "data": [*map(_seen, body["inputs"])]}
        if kind == "zero-grad":
            self.pending, self.lost = 0, False
            return self._trainer_state()
        self.pending = 0
        self.step += 1
        self.run_step += 1
        self.active = not (self.ends and self.run_step >= self.spec["steps"])
        if self.run_step in self.committed:
            self.committed[self.run_step].set()
        self.cursor = body["cursor"]
        self.batch = body["batch"]
        self.checkpoint = self.head = f"tiny-{self.step:06d}"
        return {
            "step": self.step,
            "checkpoint_id": self.checkpoint,
            "sampler_path": "",
            "state_path": "",
            "model": "tiny",
        }

    def _trainer_state(self) -> dict[str, Any]:
        return {
            "model": "tiny",
            "run": self.run,
            "term": self.term,
            "branch": "main",
            "step": self.step,
            "run_step": self.run_step,
            "digest": f"sha256:{self.step:064x}" if self.step else "",
            "checkpoint": self.checkpoint,
            "pending": self.pending,
            "cursor": self.cursor,
        }

    def _unready(self) -> web.Response | None:
        if not self.active:
            return problem(403 if self.then == "NotOwnRun" else 409, self.then)
        return problem(409, self.paused_for) if self.paused else None

    def _meet(self, route: str, request: web.Request) -> web.Response | None:
        fault = self._next_fault(route)
        self.tokens.append(request.headers["Authorization"])
        return self._refuse(fault, request) if fault else None

    async def _held_up(self, route: str) -> None:
        queued = self.seconds.get(route)
        if queued and (seconds := queued.popleft()):
            await asyncio.sleep(seconds)

    def _next_fault(self, route: str) -> int | str:
        if hook := self.hooks.pop(route, None):
            hook()
        faults = self.faults.get(route)
        return faults.popleft() if faults else ""

    def _refuse(self, fault: int | str, request: web.Request) -> web.Response:
        if fault == "drop" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return problem(int(fault), f"Status{fault}", headers)


def _seen(payload: dict[str, Any]) -> dict[str, Any]:
    """A datum of a forward, for a trajectory of one turn."""
    (sample,) = payload["samples"]
    count = len(sample["output_token_ids"])
    rows = {"logprobs": [-0.25] * count, "mask": [1.0] * count}
    sampled = {"sampling_logprobs": sample["output_logprobs"]}
    return {"reward": payload["reward"], "traj_idx": 0, **rows, **sampled}


def problem(status: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    """A refusal as gateway and trainer send it."""
    body = {"detail": f"{reason} happened", "reason": reason, "remedy": "Mend it"}
    return web.json_response(body, status=status, headers=headers)
