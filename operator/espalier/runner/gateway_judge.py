"""A judge behind the gateway, with the client that asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from espalier.api.meta import decimal
from espalier.api.run.rewards import Judge as JudgeSpec
from espalier.client import GatewayClient, Patience
from espalier.rewards.judge import Chat, Judge


class GatewayJudge(Judge):
    """A judge behind the gateway, with the client that asks it."""

    def __init__(
        self, spec: JudgeSpec, seconds: float, client: Callable[[str, Patience], GatewayClient]
    ) -> None:
        super().__init__(spec, self._sample, seconds)
        self._sampling = spec.sampling
        # It gives up a little sooner, so that its own words say why.
        patience = Patience(deadline=0.9 * seconds, attempt=seconds)
        self._client = client(spec.model_ref.name, patience)
        self._opened = False
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Closes the client."""
        if self._opened:
            self._opened = False
            await self._client.__aexit__(None, None, None)

    async def _sample(self, chat: Chat) -> str:
        async with self._opening:
            if not self._opened:
                await self._client.__aenter__()
                self._opened = True
        (answer,) = await self._client.sample(
            chat,
            temperature=decimal(self._sampling.temperature),
            max_tokens=self._sampling.max_tokens,
        )
        return answer.text
