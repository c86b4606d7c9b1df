"""The port to the API server, and its only implementation for production (kubernetes.aio).

Status is written by server-side apply on ``/status`` under its own field manager, children by
server-side apply with complete intent; a user's spec, labels and annotations are never written.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from espalier.kube import metrics
from espalier.kube.objects import Body, Key, kind_of, label_selector

MANAGER = "espalier"
STATUS_MANAGER = "espalier-status"
REQUEST_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 10
CONNECTIONS = 20
RETRY_AFTER_MOST_SECONDS = 60.0
PAGE_SIZE = 500

# What says which object, and which version of it, an intent is for.
_IDENTITY = ("name", "namespace", "uid", "resourceVersion")

Propagation = Literal["Background", "Foreground", "Orphan"]

# The status of a ClusterError that only a grant of rights ends.
FORBIDDEN = 403


class ClusterError(Exception):
    """The API server refused a call, or could not be reached (status 0).

    ``retry_after``: seconds for which it asks to be left alone, 0 if it does not.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{reason} ({status}): {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True)
class TokenReviewResult:
    """Who a bearer token belongs to; ``error`` says why it was not accepted."""

    authenticated: bool
    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    error: str = ""


class Cluster(Protocol):
    """What Espalier asks of an API server. Every call raises ClusterError when it fails."""

    async def get(self, key: Key) -> Body | None:
        """The live object, or None if it does not exist."""

    async def list(
        self, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Body]:
        """The live objects of a namespace (of all when None) that carry all these labels."""

    async def each(
        self,
        kind: str,
        namespace: str | None,
        take: Callable[[Body], None],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Call ``take`` with each object of such a list, page by page: few are held at a time."""

    async def apply(self, kind: str, body: Body, *, manager: str = MANAGER) -> Body:
        """Server-side apply, forced: the object becomes what ``body`` says in the fields it names.

        Fields that this manager applied before and ``body`` leaves out are removed.
        """

    async def apply_status(self, kind: str, body: Body) -> Body:
        """Server-side apply of ``status`` alone, forced; 404 if the object is gone.

        ``metadata.uid`` and ``metadata.resourceVersion``, where given, must still be the object's:
        409 otherwise.
        """

    async def create(self, kind: str, body: Body) -> Body | None:
        """Create the object; None if one of that name exists."""

    async def replace(self, kind: str, body: Body) -> Body:
        """Replace the object at its ``resourceVersion``; 409 if another writer was faster."""

    async def delete(
        self, key: Key, *, propagation: Propagation = "Background", uid: str | None = None
    ) -> None:
        """Delete the object (only the one of this uid, if given); one that is gone is fine."""

    async def review_token(self, token: str, audiences: Sequence[str]) -> TokenReviewResult:
        """TokenReview for any of these audiences, or the API server's own when there are none."""

    async def review_access(  # noqa: PLR0917 the attributes of a SubjectAccessReview
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
    ) -> bool:
        """SubjectAccessReview: may the user do this to the named object?"""


async def load_configuration() -> Configuration:
    """Connection settings: the file of KUBECONFIG if set, else the pod's service account.

    Raises kubernetes.aio's ConfigException when neither is there.
    """
    configuration = Configuration()
    if path := os.environ.get("KUBECONFIG"):
        await load_kube_config(config_file=path, client_configuration=configuration)
    else:
        load_incluster_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = CONNECTIONS
    # The configuration knows its proxy: to ask the environment costs a thread for every request.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


class KubernetesCluster:
    """Cluster on kubernetes.aio: one connection pool, timeouts on every call, tokens re-read."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._client = ApiClient(configuration)
        self._client.user_agent = MANAGER
        self._timeout = aiohttp.ClientTimeout(
            total=REQUEST_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS
        )

    @classmethod
    async def connect(cls) -> Self:
        """A cluster from KUBECONFIG or, inside a pod, its service account."""
        return cls(await load_configuration())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.close()

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._configuration.host)

    def watch_session(
        self,
        *traces: aiohttp.TraceConfig,
        middlewares: Sequence[aiohttp.ClientMiddlewareType] = (),
    ) -> aiohttp.ClientSession:
        """A session of its own for watches, each of which holds one connection for good.

        Every request carries the token of that moment, and passes these middlewares.
        """

        async def authenticate(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            for setting in (await self._configuration.auth_settings()).values():
                request.headers[setting["key"]] = setting["value"]
            return await handler(request)

        context: ssl.SSLContext = self._client.rest_client.ssl_context
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            headers={"User-Agent": MANAGER},
            middlewares=(authenticate, *middlewares),
            proxy=self._configuration.proxy,
            trace_configs=list(traces),
            read_bufsize=2**21,
        )

    async def get(self, key: Key) -> Body | None:
        """See Cluster."""
        kind = kind_of(key.kind)
        try:
            return await self._call("GET", kind.path(key.namespace, key.name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Body]:
        """See Cluster."""
        found: list[Body] = []
        await self.each(kind, namespace, found.append, labels)
        return found

    async def each(
        self,
        kind: str,
        namespace: str | None,
        take: Callable[[Body], None],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """See Cluster."""
        known = kind_of(kind)
        query: dict[str, str] = {"limit": str(PAGE_SIZE)}
        if selector := label_selector(labels):
            query["labelSelector"] = selector
        while True:
            page = await self._call("GET", known.path(namespace), query)
            for item in page["items"]:
                # Items of a list come without the two fields that the list itself carries.
                take({"apiVersion": known.api_version, "kind": kind, **item})
            more = page["metadata"].get("continue")
            if not more:
                return
            query["continue"] = more
            # Before the next page is there: together they may be large.
            del page

    async def apply(self, kind: str, body: Body, *, manager: str = MANAGER) -> Body:
        """See Cluster."""
        return await self._apply(kind, body, manager, "")

    async def apply_status(self, kind: str, body: Body) -> Body:
        """See Cluster."""
        metadata = body["metadata"]
        intent = {
            "metadata": {name: metadata[name] for name in _IDENTITY if name in metadata},
            "status": body["status"],
        }
        return await self._apply(kind, intent, STATUS_MANAGER, "status")

    async def create(self, kind: str, body: Body) -> Body | None:
        """See Cluster."""
        known = kind_of(kind)
        intent = {"apiVersion": known.api_version, "kind": kind, **body}
        path = known.path(body["metadata"]["namespace"])
        try:
            return await self._call("POST", path, {"fieldManager": MANAGER}, intent)
        except ClusterError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def replace(self, kind: str, body: Body) -> Body:
        """See Cluster."""
        known = kind_of(kind)
        metadata = body["metadata"]
        intent = {"apiVersion": known.api_version, "kind": kind, **body}
        path = known.path(metadata["namespace"], metadata["name"])
        return await self._call("PUT", path, {"fieldManager": MANAGER}, intent)

    async def delete(
        self, key: Key, *, propagation: Propagation = "Background", uid: str | None = None
    ) -> None:
        """See Cluster."""
        options: Body = {"propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        path = kind_of(key.kind).path(key.namespace, key.name)
        try:
            await self._call("DELETE", path, body=options)
        except ClusterError as error:
            # A conflict on the uid says that the object that was meant is gone already.
            if error.status != 404 and not (uid and error.status == 409):
                raise

    async def review_token(self, token: str, audiences: Sequence[str]) -> TokenReviewResult:
        """See Cluster."""
        spec: Body = {"token": token}
        if audiences:
            spec["audiences"] = [*audiences]
        status = await self._review("authentication.k8s.io", "TokenReview", spec)
        user = status.get("user", {})
        return TokenReviewResult(
            authenticated=status.get("authenticated", False),
            username=user.get("username", ""),
            uid=user.get("uid", ""),
            groups=tuple(user.get("groups", ())),
            audiences=tuple(status.get("audiences", ())),
            error=status.get("error", ""),
        )

    async def review_access(  # noqa: PLR0917 the attributes of a SubjectAccessReview
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
    ) -> bool:
        """See Cluster."""
        attributes = {
            "verb": verb,
            "group": group,
            "resource": resource,
            "namespace": namespace,
            "name": name,
        }
        spec = {"user": user, "groups": [*groups], "resourceAttributes": attributes}
        status = await self._review("authorization.k8s.io", "SubjectAccessReview", spec)
        return bool(status["allowed"])

    async def may(self, verb: str, kind: str, namespace: str, subresource: str = "") -> bool:
        """SelfSubjectAccessReview: may we ourselves do this to objects of a kind?"""
        known = kind_of(kind)
        attributes = {
            "verb": verb,
            "group": known.group,
            "resource": known.plural,
            "subresource": subresource,
            "namespace": namespace,
        }
        spec = {"resourceAttributes": attributes}
        status = await self._review("authorization.k8s.io", "SelfSubjectAccessReview", spec)
        return bool(status["allowed"])

    async def served_schemas(self, group: str, version: str) -> dict[str, Body]:
        """The OpenAPI schemas of a group's kinds as they are served, by kind; none without CRDs."""
        try:
            answer = await self._call("GET", f"/openapi/v3/apis/{group}/{version}")
        except ClusterError as error:
            if error.status == 404:
                return {}
            raise
        kinds = {}
        for schema in answer.get("components", {}).get("schemas", {}).values():
            for served in schema.get("x-kubernetes-group-version-kind", ()):
                kinds[served["kind"]] = schema
        return kinds

    async def _review(self, group: str, kind: str, spec: Body) -> Body:
        body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
        answer = await self._call("POST", f"/apis/{group}/v1/{kind.lower()}s", body=body)
        status: Body = answer["status"]
        return status

    async def _apply(self, kind: str, body: Body, manager: str, subresource: str) -> Body:
        known = kind_of(kind)
        metadata = body["metadata"]
        intent = {"apiVersion": known.api_version, "kind": kind, **body}
        return await self._call(
            "PATCH",
            known.path(metadata["namespace"], metadata["name"], subresource),
            {"fieldManager": manager, "force": "true"},
            intent,
            content_type="application/apply-patch+yaml",
        )

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> Body:
        status = 0
        try:
            _, url, headers, _, _ = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                auth_settings=["BearerToken"],
            )
            # A body is plain JSON already: the client would walk all of it to make it so.
            response = await self._client.call_api(
                method, url, headers, body, _request_timeout=self._timeout
            )
            status = response.status
            text = await response.read()
        except TimeoutError as error:
            raise ClusterError(
                0, "Timeout", f"{method} {path}: no answer within {REQUEST_TIMEOUT_SECONDS} s"
            ) from error
        except aiohttp.ClientError as error:
            raise ClusterError(0, "ConnectionFailed", f"{method} {path}: {error}") from error
        finally:
            metrics.REQUESTS.labels(verb=method, code=status or "error").inc()
        if status >= 400:
            raise _refusal(status, text, f"{method} {path}", _retry_after(response.headers))
        parsed: Body = json.loads(text)
        return parsed


def _refusal(status: int, text: bytes, call: str, retry_after: float) -> ClusterError:
    """The error that a Status object (or a proxy's plain text) stands for."""
    try:
        answer: Any = json.loads(text)
        return ClusterError(status, answer["reason"], answer["message"], retry_after)
    except (ValueError, KeyError, TypeError):
        shown = text[:500].decode(errors="replace")
        return ClusterError(status, "Unknown", f"{call}: {shown}", retry_after)


def _retry_after(headers: Mapping[str, str]) -> float:
    """The header Retry-After in seconds, bounded; Kubernetes sends no dates in it."""
    text = headers.get("Retry-After", "")
    return min(float(text), RETRY_AFTER_MOST_SECONDS) if text.isdecimal() else 0.0
