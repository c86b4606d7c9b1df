"""vLLM's way to our store: adapter names resolve to verified directories, and nothing else does."""

from __future__ import annotations

import asyncio

from vllm.exceptions import VLLMNotFoundError
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from espalier.api.wire.problem import Problem
from espalier.sampler.verified_files import StoreError
from espalier.sampler.verified_store import AdapterStore


class UnservableAdapterError(VLLMNotFoundError):  # type: ignore[misc]
    """The named adapter cannot be served; vLLM answers 404 with this text."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.detail} ({problem.reason}); {problem.remedy}")
        self.problem = problem


class StoreResolver(LoRAResolver):  # type: ignore[misc]
    """Loads ``<slug>@<12 hex>`` on demand; vLLM holds a lock per name while it does."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest:
        """The request that loads the adapter (vLLM sets its id); raises UnservableAdapterError."""
        try:
            adapter = await asyncio.to_thread(self._store.resolve, lora_name)
        except StoreError as error:
            raise UnservableAdapterError(error.problem) from error
        return LoRARequest(lora_name=adapter.name, lora_int_id=1, lora_path=str(adapter.directory))
