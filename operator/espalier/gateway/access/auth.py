"""Who calls and what they may do, as the API server says: TokenReview and SubjectAccessReview.

Both answers are remembered for a short time, so that a request seldom waits for the API server.
An API key stands for a service account, whose rights are reviewed like anybody's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from espalier.api.meta import GROUP
from espalier.core.api_keys import PREFIX, SCOPES, Scope
from espalier.core.names import GATEWAY_AUDIENCE
from espalier.gateway.access.api_keys import ApiKeys
from espalier.gateway.access.key_source import ClusterKeys
from espalier.gateway.access.own_run import OwnRun
from espalier.gateway.access.remembered import Remembered
from espalier.gateway.access.reviews_in_flight import (
    RIGHTS_AT_ONCE,
    TOKENS_AT_ONCE,
    TOKENS_WAITING,
    ReviewsInFlight,
)
from espalier.gateway.access.rights import SAMPLE, SAMPLER_ROLE
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.world.world import NamespacedName
from espalier.kube.cluster import Cluster, ClusterError, Extra

V = TypeVar("V")


@dataclass(frozen=True)
class User:
    """An authenticated caller.

    ``uid`` and ``extra`` are what the API server says of it besides. ``scopes``: what an API key is
    limited to; None for no limit. ``api_key``: the id of the key that was shown, if one was.
    """

    name: str
    groups: tuple[str, ...]
    uid: str = field(default="", kw_only=True)
    extra: Extra = field(default=(), kw_only=True)
    scopes: frozenset[Scope] | None = None
    api_key: str = field(default="", kw_only=True)

    @property
    def digest(self) -> str:
        """What pods are told of who calls: callers can be told apart, and not be read."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:24]

    def require_scope(self, *any_of: Scope) -> None:
        """Refuses a limited key that has none of these scopes; without any, every limited key."""
        if self.scopes is None or self.scopes.intersection(any_of):
            return
        wanted = " or ".join(any_of) or ", ".join(SCOPES)
        raise RefusalError(
            403,
            "ScopeMissing",
            f"the API key is limited to {', '.join(sorted(self.scopes))}, and this takes {wanted}",
            f"Use a key that has it: espalier keys create NAME --scope {(any_of or SCOPES)[0]}",
        )


class Authenticator:
    """Reviews tokens and access; raises RefusalError with 401, 403 or 503.

    Args:
        cluster: asked for both reviews.
        clock: seconds.
        keys: the API keys that are let in; none without it.
        own_run: keeps runners to their own run; without it their service account's rights decide.
        api_server_tokens: whether tokens of the API server's own audience are taken too. Whoever
            reads one on its way can act by it at the API server as well.
    """

    def __init__(
        self,
        cluster: Cluster,
        clock: Callable[[], float] = time.monotonic,
        *,
        keys: ApiKeys | None = None,
        own_run: OwnRun | None = None,
        api_server_tokens: bool = False,
    ) -> None:
        self._cluster = cluster
        self._keys = keys or ApiKeys(ClusterKeys(cluster), ())
        self._own_run = own_run
        # One review cannot ask for both audiences: an empty list stands for the server's own.
        self._audiences = ((GATEWAY_AUDIENCE,), ()) if api_server_tokens else ((GATEWAY_AUDIENCE,),)
        self._token_reviews = ReviewsInFlight(TOKENS_AT_ONCE, TOKENS_WAITING)
        self._access_reviews = ReviewsInFlight(RIGHTS_AT_ONCE)
        self._users: Remembered[User | None] = Remembered(clock)
        self._access: Remembered[bool] = Remembered(clock)

    async def user(self, authorization: str | None, api_key: str | None = None) -> User:
        """The caller behind the headers ``Authorization`` and ``X-API-Key``."""
        token = _credential(authorization, api_key)
        if token.startswith(PREFIX):
            return await self._of_key(token)
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

    async def _of_key(self, key: str) -> User:
        """The service account that a key is of, as the API server knows it by its tokens."""
        admitted = await self._keys.admit(key)
        accounts = "system:serviceaccounts"
        return User(
            f"system:serviceaccount:{admitted.namespace}:{admitted.account}",
            (accounts, f"{accounts}:{admitted.namespace}", "system:authenticated"),
            admitted.scopes,
            api_key=admitted.id,
        )

    async def allowed(self, user: User, verb: str, resource: str, target: NamespacedName) -> bool:
        """True when the caller may do this to the named object of our API group.

        ``resource`` may have a subresource, such as ``trainablemodels/sample``.
        """
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
                remedy(verb, resource, f"in namespace {target.namespace} "),
            )

    async def _review_token(self, token: str) -> User | None:
        for audiences in self._audiences:
            async with self._token_reviews.turn():
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
        async with self._access_reviews.turn():
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


def remedy(verb: str, resource: str, where: str = "") -> str:
    """How a right is granted; ``where`` ends in a space."""
    role = f", or bind ClusterRole {SAMPLER_ROLE}" if (verb, resource) == SAMPLE else ""
    return f"Grant verb {verb} on {resource} of {GROUP} {where}by a Role and a RoleBinding{role}"


async def _reviewed(review: Awaitable[V]) -> V:
    try:
        return await review
    except ClusterError as error:
        raise not_ready(
            "ReviewFailed", f"the API server did not review the request: {error.message}"
        ) from error


def _credential(authorization: str | None, api_key: str | None) -> str:
    """The token or key of a request; RefusalError 401 if there is none, or two."""
    scheme, _, token = (authorization or "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    key = (api_key or "").strip()
    if key and authorization and bearer != key:
        raise RefusalError(
            401,
            "TwoCredentials",
            "Authorization and X-API-Key say different things",
            "Send one of them",
        )
    if not (bearer or key):
        raise RefusalError(
            401,
            "NoToken",
            "the request carries no bearer token and no API key",
            "Send Authorization: Bearer <Kubernetes token>, for example of "
            f"kubectl create token <service account> --audience {GATEWAY_AUDIENCE}, or an API key "
            "of espalier keys create",
        )
    return bearer or key
