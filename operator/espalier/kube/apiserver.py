"""The API server as a Cluster: each call of the port as one request, or one for each page."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self
from urllib.parse import quote

import aiohttp
from kubernetes.aio.client.configuration import Configuration

from espalier.kube.cluster import (
    MANAGER,
    STATUS_MANAGER,
    BeforeWrite,
    ClusterError,
    Extra,
    Propagation,
    TokenReviewResult,
    always,
)
from espalier.kube.connections import ApiServerTransport, load_configuration
from espalier.kube.objects import Body, ObjectKey, kind_of, label_selector
from espalier.kube.reviews import resource_attributes, token_review, token_reviewed

PAGE_SIZE = 500
# After this many objects of a page, other tasks of the event loop run.
AT_ONCE = 20
# The fields of metadata that identify the object, and the version, that an intent is for.
_IDENTITY = ("name", "namespace", "uid", "resourceVersion")


class KubernetesCluster:
    """See Cluster."""

    def __init__(self, configuration: Configuration) -> None:
        self._transport = ApiServerTransport(configuration)
        self._call = self._transport.call
        self._before_write: BeforeWrite = always
        self._manager = MANAGER

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
        await self._transport.close()

    def fenced(self, before_write: BeforeWrite) -> Self:
        """This cluster over the same connections, asking ``before_write`` ahead of each write."""
        fenced = copy.copy(self)
        fenced._before_write = before_write
        return fenced

    def acting_for(
        self,
        user: str,
        groups: Sequence[str],
        *,
        uid: str = "",
        extra: Extra = (),
        manager: str,
    ) -> Self:
        """See Cluster; over the same connections."""
        acting = copy.copy(self)
        headers = [("Impersonate-User", user), *(("Impersonate-Group", name) for name in groups)]
        if uid:
            headers.append(("Impersonate-Uid", uid))
        for key, values in extra:
            # A key may have a slash, and a header's name has none.
            headers += [(f"Impersonate-Extra-{quote(key, safe='')}", value) for value in values]
        acting._call = partial(self._transport.call, more_headers=headers)
        acting._manager = manager
        return acting

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._transport.server

    def watch_session(self, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        """A session of its own for watches; see Transport."""
        return self._transport.watch_session(*traces)

    async def get(self, key: ObjectKey) -> Body | None:
        """See Cluster."""
        kind = kind_of(key.kind)
        try:
            return await self._call("GET", kind.path(key.namespace, key.name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        fields: Mapping[str, str] | None = None,
    ) -> list[Body]:
        """See Cluster."""
        found: list[Body] = []
        await self._each(kind, namespace, found.append, labels, fields)
        return found

    async def each(
        self,
        kind: str,
        namespace: str | None,
        take: Callable[[Body], None],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """See Cluster."""
        await self._each(kind, namespace, take, labels, None)

    async def _each(
        self,
        kind: str,
        namespace: str | None,
        take: Callable[[Body], None],
        labels: Mapping[str, str] | None,
        fields: Mapping[str, str] | None,
    ) -> None:
        query: dict[str, str] = {"limit": str(PAGE_SIZE)}
        if selector := label_selector(labels):
            query["labelSelector"] = selector
        if fields:
            query["fieldSelector"] = label_selector(fields)
        path = kind_of(kind).path(namespace)
        page: Body | None = await self._call("GET", path, query)
        while page is not None:
            page = await self._turn(kind, page, take, path, query)

    async def _turn(
        self, kind: str, page: Body, take: Callable[[Body], None], path: str, query: dict[str, str]
    ) -> Body | None:
        """Take in a page while the server prepares the next one, which is returned."""
        coming = None
        if more := page["metadata"].get("continue"):
            coming = asyncio.create_task(self._call("GET", path, {**query, "continue": more}))
        try:
            api_version = kind_of(kind).api_version
            for number, item in enumerate(page["items"]):
                # Items of a list come without the two fields that the list itself carries.
                take({"apiVersion": api_version, "kind": kind, **item})
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
            return await coming if coming is not None else None
        finally:
            if coming is not None:
                coming.cancel()

    async def apply(self, kind: str, body: Body, *, manager: str = MANAGER) -> Body:
        """See Cluster."""
        return await self._apply(kind, body, manager, "")

    async def apply_status(self, kind: str, body: Body, *, manager: str = STATUS_MANAGER) -> Body:
        """See Cluster."""
        metadata = body["metadata"]
        intent = {
            "metadata": {name: metadata[name] for name in _IDENTITY if name in metadata},
            "status": body["status"],
        }
        return await self._apply(kind, intent, manager, "status")

    async def create(self, kind: str, body: Body) -> Body | None:
        """See Cluster."""
        self._before_write()
        known = kind_of(kind)
        intent = {"apiVersion": known.api_version, "kind": kind, **body}
        path = known.path(body["metadata"]["namespace"])
        try:
            return await self._call("POST", path, {"fieldManager": self._manager}, intent)
        except ClusterError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def replace(self, kind: str, body: Body) -> Body:
        """See Cluster."""
        self._before_write()
        known = kind_of(kind)
        metadata = body["metadata"]
        intent = {"apiVersion": known.api_version, "kind": kind, **body}
        path = known.path(metadata["namespace"], metadata["name"])
        return await self._call("PUT", path, {"fieldManager": self._manager}, intent)

    async def delete(
        self, key: ObjectKey, *, propagation: Propagation = "Background", uid: str | None = None
    ) -> None:
        """See Cluster."""
        self._before_write()
        options: Body = {"propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        path = kind_of(key.kind).path(key.namespace, key.name)
        try:
            await self._call("DELETE", path, body=options)
        except ClusterError as error:
            # A conflict on the uid means that the intended object is gone already.
            if error.status != 404 and not (uid and error.status == 409):
                raise

    async def review_token(self, token: str, audiences: Sequence[str]) -> TokenReviewResult:
        """See Cluster."""
        spec = token_review(token, audiences)
        return token_reviewed(await self._review("authentication.k8s.io", "TokenReview", spec))

    async def review_access(  # noqa: PLR0917 the attributes of a SubjectAccessReview
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        extra: Extra = (),
    ) -> bool:
        """See Cluster."""
        attributes = resource_attributes(verb, group, resource, namespace, name)
        spec: Body = {"user": user, "groups": [*groups], "resourceAttributes": attributes}
        if uid:
            spec["uid"] = uid
        if extra:
            spec["extra"] = {key: [*values] for key, values in extra}
        status = await self._review("authorization.k8s.io", "SubjectAccessReview", spec)
        return bool(status["allowed"])

    async def may(self, verb: str, kind: str, namespace: str, subresource: str = "") -> bool:
        """SelfSubjectAccessReview: may we ourselves do this to objects of a kind?"""
        known = kind_of(kind)
        resource = f"{known.plural}/{subresource}"
        spec = {"resourceAttributes": resource_attributes(verb, known.group, resource, namespace)}
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
        self._before_write()
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
