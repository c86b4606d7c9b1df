"""What a handler needs to call a pod."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp

from espalier.gateway.access.byte_budget import ByteBudget
from espalier.gateway.access.pod_tokens import TokenIssuer


@dataclass(frozen=True)
class PodCalls:
    """Connections to pods, tokens that prove the gateway to them, the bytes of their answers."""

    session: aiohttp.ClientSession
    tokens: TokenIssuer
    answers: ByteBudget
