"""The parts of a gateway, made once per process, and keys that handlers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import aiohttp
from aiohttp import web

from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.byte_budget import ByteBudgets
from espalier.gateway.access.connections import Connections
from espalier.gateway.access.offers import Offers
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.access.quotas import Limits
from espalier.gateway.world.watch import WorldWatch
from espalier.kube.cluster import Cluster

UPSTREAM_SECONDS: web.RequestKey[float] = web.RequestKey("upstream_seconds", float)
# HUD's client sends a call once, and a fork's first before its servers are up: it is held for so
# long, because within the 600 s that the client waits in all, the answer needs time too.
HELD_SECONDS = 240.0
# The manager of the fields of statuses that the gateway writes; the operator has all others.
STATUS_MANAGER = "espalier-gateway"
# When a request came, by time.monotonic: what its client waits for counts from then on.
ARRIVED: web.RequestKey[float] = web.RequestKey("arrived", float)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


@dataclass(frozen=True)
class GatewayContext:
    """The parts of a gateway, of which ``make_app`` gives each handler those that it uses.

    Attributes:
        watch: the cluster as it is now.
        cluster: written in the names of users (``access/on_behalf.py``), and by the gateway itself
            statuses alone: evaluations, saves, barren rounds, and which trainer a call waits for.
        auth: asks the API server who calls and what they may do.
        tokens: prove the gateway to pods.
        session: connections to pods, of ``pod_session``.
        offers: the bases that may be forked.
        budgets: bound the bytes that all requests hold together.
        limits: bound what one caller takes.
    """

    watch: WorldWatch
    cluster: Cluster
    auth: Authenticator
    tokens: TokenIssuer
    session: aiohttp.ClientSession
    offers: Offers = field(default_factory=Offers)
    budgets: ByteBudgets = field(default_factory=ByteBudgets.of_container)
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def connections(self) -> Connections:
        """The connections that its ports have open."""
        return Connections(self.limits.connections)


def requested_slug(request: web.Request) -> str:
    """The slug that a route names, with its namespace where the route has one."""
    match = request.match_info
    return f"{match['namespace']}/{match['slug']}" if "namespace" in match else match["slug"]
