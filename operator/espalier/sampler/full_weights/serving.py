"""Serves full weights, one set at a time: a checkpoint's replace the ones before.

A swap shuts the gate, lets running completions end (DRAIN_SECONDS, then they are stopped and
answered 409), drops the prefix cache, loads, and opens the gate under the new name. The name is the
only model that vLLM then knows, so an answer's ``model`` is what produced all of its tokens.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any, NoReturn

from typing_extensions import override
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.exceptions import GracefulHTTPError
from vllm.logger import init_logger
from vllm.lora.resolver import LoRAResolver

from espalier.api.wire.problem import Problem
from espalier.api.wire.rollout_control import Served
from espalier.core import names
from espalier.sampler.full_weights.gate import WeightsGate
from espalier.sampler.full_weights.store import FullStore, Weights
from espalier.sampler.resolver import UnservableAdapterError
from espalier.sampler.served import ServeError, Serving
from espalier.sampler.verified_files import StoreError
from espalier.unchanged import ChangedError

logger = init_logger("vllm.espalier.full")

# Less than the operator waits for an answer (30 s), so that a load of small weights fits in it.
DRAIN_SECONDS = 20.0
# A load that takes longer has hung: the engine is called dead, and the kubelet restarts the pod.
LOAD_SECONDS = 900.0


class FullServing(Serving):
    """The one set of weights in vLLM's engine; at start the base's.

    ``state`` is vLLM's application state, ``gate`` what completions pass.
    """

    def __init__(self, state: Any, store: FullStore, gate: WeightsGate) -> None:
        super().__init__(state.engine_client)
        models = state.openai_serving_models
        # The registry's own list: vLLM accepts the names in it and answers with them.
        self._served_names: list[BaseModelPath] = models.base_model_paths
        models.lora_resolvers = [_Absent(self, store)]
        self._store = store
        self._gate = gate
        self._lock = asyncio.Lock()
        self._loaded = store.base()
        self._broken = ""

    @property
    def name(self) -> str:
        """The name of the loaded weights."""
        return self._loaded.name

    @property
    def broken(self) -> str:
        """Why the engine's weights must not be used any more; empty while they may."""
        return self._broken

    @override
    async def serve(self, wanted: list[str]) -> Served:
        found = [name for name in dict.fromkeys(wanted) if name != names.BASE]
        if len(found) > 1:
            raise ServeError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                Problem(
                    reason="TooManyAdapters",
                    detail=f"{found} asked for; full weights are served one checkpoint at a time",
                    remedy="point all heads of the model at one checkpoint, or fork it",
                ),
            )
        name = found[0] if found else names.BASE
        async with self._lock:
            if self._broken:
                raise _failed("EngineBroken", self._broken, "the kubelet restarts the pod")
            if name != self.name:
                await self._swap(await self._resolve(name))
            self._desired = tuple(found)
            return self._answer()

    @override
    async def served(self) -> Served:
        return self._answer()

    @override
    async def check_health(self) -> None:
        if self._broken:
            raise RuntimeError(self._broken)
        await super().check_health()

    def _answer(self) -> Served:
        base = self.name == names.BASE
        loaded = [] if base else [self.name]
        ready = self.ready and not self._broken and loaded == list(self._desired or ())
        return Served(adapters=loaded, base=base, ready=ready)

    async def _resolve(self, name: str) -> Weights:
        try:
            return await asyncio.to_thread(self._store.resolve, name)
        except StoreError as error:
            raise ServeError(HTTPStatus.UNPROCESSABLE_ENTITY, error.problem) from error

    async def _swap(self, weights: Weights) -> None:
        """Swaps the weights; keeps the old ones if the new ones cannot be loaded (ServeError)."""
        started = time.monotonic()
        async with self._gate.shut(DRAIN_SECONDS):
            drained = time.monotonic()
            # Only requests that clients abandoned still run; the prefix cache is dropped with them.
            await self._engine.pause_generation(mode="abort", clear_cache=True)
            if problem := await self._load(weights):
                await self._restore(problem)
            self._loaded = weights
            path = str(weights.files[0].parent)
            self._served_names[:] = [BaseModelPath(weights.name, path)]
            await self._engine.resume_generation()
        done = time.monotonic()
        logger.info(
            "Drained in %.3f s, loaded %s in %.3f s",
            drained - started, weights.name, done - drained,
        )  # fmt: skip

    async def _load(self, weights: Weights) -> str:
        """Load into every worker; returns what failed, or an empty text.

        Weights that were changed while they were loaded have failed.
        """
        files = [str(file) for file in weights.files]
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                problems = await self._engine.collective_rpc("load_full_weights", args=(files,))
        except TimeoutError:
            # The load may still be running, so this engine must not get another call.
            self._broken = f"loading {weights.name} took more than {LOAD_SECONDS:.0f} s"
            return self._broken
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if failed := next((problem for problem in problems if problem), ""):
            return failed
        try:
            await asyncio.to_thread(weights.noted.check)
        except ChangedError as error:
            return f"{error.problem.text} ({error.problem.reason})"
        return ""

    async def _restore(self, problem: str) -> NoReturn:
        """Load the previous weights again: some of them may have been overwritten."""
        if not self._broken and (again := await self._load(self._loaded)):
            self._broken = f"{problem}; then the weights before, {self.name}: {again}"
        if self._broken:
            # The engine stays paused, and no name leads to it any more.
            self._served_names.clear()
            raise _failed("EngineBroken", self._broken, "the kubelet restarts the pod")
        await self._engine.resume_generation()
        raise _failed("LoadFailed", f"{problem}; {self.name} stays served", "see the rollout's log")


class _Absent(LoRAResolver):  # type: ignore[misc]
    """Answers vLLM's questions about model names other than the served one."""

    def __init__(self, serving: FullServing, store: FullStore) -> None:
        self._serving = serving
        self._store = store

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> NoReturn:
        """409 for weights that could be loaded, 404 for unknown names, 503 if broken."""
        if self._serving.broken:
            raise GracefulHTTPError(self._serving.broken, HTTPStatus.SERVICE_UNAVAILABLE)
        if lora_name != names.BASE:
            try:
                await asyncio.to_thread(self._store.open, lora_name)
            except StoreError as error:
                raise UnservableAdapterError(error.problem) from error
        raise GracefulHTTPError(
            f"{lora_name} is not loaded (CheckpointNotLoaded): this rollout serves full weights, "
            f"one checkpoint at a time, now {self._serving.name}; point the head at it",
            HTTPStatus.CONFLICT,
        )


def _failed(reason: str, detail: str, remedy: str) -> ServeError:
    problem = Problem(reason=reason, detail=detail, remedy=remedy)
    return ServeError(HTTPStatus.INTERNAL_SERVER_ERROR, problem)
