"""LoRA adapters, served side by side through vLLM's own registry of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from typing_extensions import override
from vllm.lora.request import LoRARequest

from espalier.api.wire.problem import Problem
from espalier.api.wire.rollout_control import Served
from espalier.core import names
from espalier.core.volume import MANIFEST
from espalier.sampler.resolver import UnservableAdapterError
from espalier.sampler.served import ServeError, Serving
from espalier.sampler.verified_store import ADAPTER_FILES

LOAD_SECONDS = 60.0


class LiveAdapters(dict[str, LoRARequest]):
    """vLLM's registry of adapters, minus those whose files are gone or were touched.

    vLLM reads an evicted adapter again in the middle of a step, and its engine ends where that
    fails (``verified_load``). A name that is forgotten here is resolved again, so what does not
    match its digest is a 404 before that.
    """

    def __init__(self, loaded: Mapping[str, LoRARequest]) -> None:
        super().__init__()
        self._seen: dict[str, Seen] = {}
        for name, request in loaded.items():
            self[name] = request

    def __setitem__(self, name: str, request: LoRARequest) -> None:
        super().__setitem__(name, request)
        self._seen[name] = seen(request)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self._seen[name]

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name):
            return False
        now = seen(self[str(name)])
        if now and now == self._seen[str(name)]:
            return True
        del self[str(name)]
        return False


Seen = tuple[tuple[int, int, int, int], ...]


def seen(request: LoRARequest) -> Seen:
    """What tells that an adapter's files were written or replaced; empty where one is missing."""
    try:
        found = [(Path(request.lora_path) / name).stat() for name in (MANIFEST, *ADAPTER_FILES)]
    except OSError:
        return ()
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)


class AdapterServing(Serving):
    """The adapters that the operator wants served. ``state`` is vLLM's application state."""

    def __init__(self, state: Any) -> None:
        super().__init__(state.engine_client)
        self._models = state.openai_serving_models
        self._most = state.vllm_config.lora_config.max_loras
        self._lock = asyncio.Lock()
        self._models.lora_requests = LiveAdapters(self._models.lora_requests)

    @override
    async def serve(self, wanted: list[str]) -> Served:
        adapters = [name for name in dict.fromkeys(wanted) if name != names.BASE]
        if len(adapters) > self._most:
            raise ServeError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                Problem(
                    reason="TooManyAdapters",
                    detail=f"{len(adapters)} adapters asked for, this pod serves {self._most}",
                    remedy="serve fewer heads of the model or raise ESPALIER_MAX_ADAPTERS",
                ),
            )
        try:
            async with asyncio.timeout(LOAD_SECONDS), self._lock:
                requests = [await self._resolve(name) for name in adapters]
                missing = await self._missing(requests)
                for request in missing:
                    await self._engine.add_lora(request)
                lost = await self._missing(requests) if missing else []
        except TimeoutError:
            raise ServeError(
                HTTPStatus.GATEWAY_TIMEOUT,
                Problem(
                    reason="LoadTimeout",
                    detail=f"the engine took more than {LOAD_SECONDS:.0f} s to load {adapters}",
                    remedy="send the request again; the engine may be busy",
                ),
            ) from None
        if lost:
            raise ServeError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                Problem(
                    reason="NotReadBack",
                    detail=f"the engine does not list {[item.lora_name for item in lost]}",
                    remedy="send the request again",
                ),
            )
        self._desired = tuple(adapters)
        return Served(adapters=adapters, ready=True)

    @override
    async def served(self) -> Served:
        desired = self._desired or ()
        requests = [
            self._models.lora_requests[n] for n in desired if n in self._models.lora_requests
        ]
        missing = {request.lora_name for request in await self._missing(requests)}
        loaded = [item.lora_name for item in requests if item.lora_name not in missing]
        return Served(adapters=loaded, ready=self.ready and len(loaded) == len(desired))

    async def _resolve(self, name: str) -> LoRARequest:
        try:
            found = await self._models.resolve_lora(name)
        except UnservableAdapterError as error:
            raise ServeError(HTTPStatus.UNPROCESSABLE_ENTITY, error.problem) from error
        if isinstance(found, LoRARequest):
            return found
        raise ServeError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            Problem(
                reason="NotLoadable",
                detail=found.error.message,
                remedy="vLLM refuses the adapter's tensors: check its target modules",
            ),
        )

    async def _missing(self, requests: list[LoRARequest]) -> list[LoRARequest]:
        loaded = await self._engine.list_loras()
        return [request for request in requests if request.lora_int_id not in loaded]
