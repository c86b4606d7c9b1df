"""The adapters that a rollout pod serves: the operator sets them and reads them back."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Any

from vllm import SamplingParams
from vllm.logger import init_logger

from espalier.api.wire.problem import Problem
from espalier.api.wire.rollout_control import Served

logger = init_logger("vllm.espalier.serving")

WARM_UP_SECONDS = 120.0


class ServeError(Exception):
    """The request cannot be fulfilled; the adapters that were served before stay."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.status = status
        self.problem = problem


class Serving(ABC):
    """Loads the requested adapters into vLLM. ``engine`` is vLLM's client of its engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._desired: tuple[str, ...] | None = None

    @property
    def ready(self) -> bool:
        """Whether a serve request has been fulfilled since this process began."""
        return self._desired is not None

    @abstractmethod
    async def serve(self, wanted: list[str]) -> Served:
        """Load what is not loaded, read all of it back; raises ServeError."""

    @abstractmethod
    async def served(self) -> Served:
        """The adapters of the last request that are loaded now; not ready if one is missing."""

    async def check_health(self) -> None:
        """Raise if vLLM's engine is dead."""
        await self._engine.check_health()

    async def warm_up(self) -> None:
        """Sample one token, so that the first caller does not pay for lazy initialisation."""
        started = time.monotonic()
        async with asyncio.timeout(WARM_UP_SECONDS):
            async for _ in self._engine.generate(
                {"prompt_token_ids": [0]},
                SamplingParams(max_tokens=1, temperature=1.0, logprobs=1),
                request_id="warm-up",
            ):
                pass
        logger.info("Warmed up in %.1f s", time.monotonic() - started)
