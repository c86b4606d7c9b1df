"""Who calls and what they may do, as the API server says: TokenReview and SubjectAccessReview.

Both answers are remembered for a short time, so that a request seldom waits for the API server.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cachetools import TLRUCache

from espalier.api.meta import GROUP
from espalier.core.names import GATEWAY_AUDIENCE
from espalier.gateway.access.own_run import OwnRun
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.world.world import NamespacedName
from espalier.kube.cluster import Cluster, ClusterError, Extra

GRANTED_SECONDS = 60.0
REFUSED_SECONDS = 5.0
CAPACITY = 4096

V = TypeVar("V")


@dataclass(frozen=True)
class User:
    """An authenticated caller. ``uid`` and ``extra`` are what the API server says of it besides."""

    name: str
    groups: tuple[str, ...]
    uid: str = field(default="", kw_only=True)
    extra: Extra = field(default=(), kw_only=True)


class Authenticator:
    """Reviews tokens and access; raises RefusalError with 401, 403 or 503.

    Args:
        cluster: asked for both reviews.
        clock: seconds.
        own_run: keeps runners to their own run; without it their service account's rights decide.
        api_server_tokens: whether tokens of the API server's own audience are taken too. Whoever
            reads one on its way can act by it at the API server as well.
    """

    def __init__(
        self,
        cluster: Cluster,
        clock: Callable[[], float] = time.monotonic,
        *,
        own_run: OwnRun | None = None,
        api_server_tokens: bool = False,
    ) -> None:
        self._cluster = cluster
        self._own_run = own_run
        # One review cannot ask for both audiences: an empty list stands for the server's own.
        self._audiences = ((GATEWAY_AUDIENCE,), ()) if api_server_tokens else ((GATEWAY_AUDIENCE,),)
        self._users: Remembered[User | None] = Remembered(clock)
        self._access: Remembered[bool] = Remembered(clock)

    async def user(self, authorization: str | None) -> User:
        """The caller behind an ``Authorization`` header."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise RefusalError(
                401,
                "NoToken",
                "the request carries no bearer token",
                "Send Authorization: Bearer <Kubernetes token>, for example of "
                f"kubectl create token <service account> --audience {GATEWAY_AUDIENCE}",
            )
        digest = hashlib.sha256(token.encode()).hexdigest()
        user = await self._users.get(digest, lambda: self._review_token(token))
        if user is None:
            raise RefusalError(
                401,
                "TokenRefused",
                "the API server does not accept the token: it is expired, forged or for another "
                "audience",
                f"Take a new one: kubectl create token NAME --audience {GATEWAY_AUDIENCE}",
            )
        return user

    async def allowed(self, user: User, verb: str, resource: str, target: NamespacedName) -> bool:
        """True when the caller may do this to the named object of our API group."""
        if self._beyond_own_run(user, verb, resource, target):
            return False
        key = (user, verb, resource, target)
        return await self._access.get(
            key, lambda: self._review_access(user, verb, resource, target)
        )

    async def require(self, user: User, verb: str, resource: str, target: NamespacedName) -> None:
        """Refuses a caller who may not do this, naming the missing right."""
        if beyond := self._beyond_own_run(user, verb, resource, target):
            raise RefusalError(
                403,
                "NotOwnRun",
                beyond,
                "Act on another run as a service account of your own",
            )
        if not await self.allowed(user, verb, resource, target):
            raise RefusalError(
                403,
                "Forbidden",
                f"{user.name} may not {verb} {resource} {target}",
                f"Grant verb {verb} on {resource} of {GROUP} in namespace {target.namespace} by a "
                "Role and a RoleBinding",
            )

    async def _review_token(self, token: str) -> User | None:
        for audiences in self._audiences:
            result = await _reviewed(self._cluster.review_token(token, audiences))
            if result.authenticated:
                return User(
                    result.username, tuple(result.groups), uid=result.uid, extra=result.extra
                )
        return None

    def _beyond_own_run(self, user: User, verb: str, resource: str, target: NamespacedName) -> str:
        if self._own_run is None:
            return ""
        return self._own_run.refusal(user.name, user.extra, verb, resource, target)

    async def _review_access(
        self, user: User, verb: str, resource: str, target: NamespacedName
    ) -> bool:
        return await _reviewed(
            self._cluster.review_access(
                user.name,
                user.groups,
                verb,
                GROUP,
                resource,
                target.namespace,
                target.name,
                uid=user.uid,
                extra=user.extra,
            )
        )


async def _reviewed(review: Awaitable[V]) -> V:
    try:
        return await review
    except ClusterError as error:
        raise not_ready(
            "ReviewFailed", f"the API server did not review the request: {error.message}"
        ) from error


class Remembered(Generic[V]):
    """Answers by key for a while: a falsy one for 5 s, any other for 60 s.

    Callers who ask for the same key at the same time share one question.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers: TLRUCache[Hashable, V] = TLRUCache(CAPACITY, _expiry, clock)
        self._questions: dict[Hashable, asyncio.Future[V]] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[V]]) -> V:
        """The remembered answer, or a new one."""
        with suppress(KeyError):
            return self._answers[key]
        question = self._questions.get(key)
        if question is None:
            question = asyncio.ensure_future(ask())
            self._questions[key] = question
            question.add_done_callback(lambda done: self._close(key, done))
        # Shielded, because others may wait for it when this caller disconnects.
        return await asyncio.shield(question)

    def _close(self, key: Hashable, question: asyncio.Future[V]) -> None:
        del self._questions[key]
        # The exception is read here too, because every caller may have gone.
        if not question.cancelled() and question.exception() is None:
            self._answers[key] = question.result()


def _expiry(key: Hashable, answer: object, now: float) -> float:
    """When an answer that comes ``now`` is forgotten."""
    return now + (GRANTED_SECONDS if answer else REFUSED_SECONDS)
