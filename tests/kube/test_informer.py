"""The cache follows the API server, also where the watch leaves something out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from dev.apiserver import ApiServer
from kubernetes.aio.client.configuration import Configuration
from prometheus_client import REGISTRY
from tests.kube.proxy import LossyProxy

from espalier.kube import handlers, informer, objects
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cache import Cache
from espalier.kube.informer import InformerError, InformerSettings
from espalier.kube.objects import ObjectKey, Resource

LIMIT_SECONDS = 60
PINNED = {"modelRef": {"name": "arith"}, "mode": "Pin", "checkpointRef": {"name": "arith-000001"}}
WATCHED = {"ConfigMap": {"team": "ours"}, "CheckpointHead": {}}


class Through:
    """The cluster, watched through another address; all else goes straight to it."""

    def __init__(self, cluster: KubernetesCluster, server: str) -> None:
        self._cluster = cluster
        self.server = server

    def watch_session(self, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(trace_configs=list(traces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)


@contextlib.asynccontextmanager
async def informed(
    namespace: str, connection: Any, kinds: Mapping[str, Mapping[str, str]] = WATCHED
) -> AsyncIterator[Cache]:
    """A cache that an informer keeps, once it is ready."""
    cache, stop, ready = Cache(), asyncio.Event(), asyncio.Event()
    settings = InformerSettings((namespace,), kinds, ready_seconds=LIMIT_SECONDS)
    running = asyncio.create_task(informer.run(settings, cache, stop, ready, connection))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not ready.is_set():
            waiting.cancel()
            await running
        yield cache
    finally:
        stop.set()
        async with asyncio.timeout(LIMIT_SECONDS):
            await running


async def until(cache: Cache, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, looked at after every change of the cache."""
    changed = asyncio.Event()
    cache.on_change(lambda *_: changed.set())
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():
            changed.clear()
            await changed.wait()


def config(namespace: str, name: str, **data: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"team": "ours"}}
    return {"metadata": metadata, "data": data}


async def test_what_existed_before_is_there_when_ready(
    kubernetes: KubernetesCluster, namespace: str, head: dict[str, Any]
) -> None:
    await kubernetes.apply("CheckpointHead", head)
    async with informed(namespace, kubernetes) as cache:
        assert [b["metadata"]["name"] for b in cache.list("CheckpointHead", model="arith")] == [
            "arith"
        ]
        assert cache.synced("CheckpointHead")
        assert cache.synced("ConfigMap")


async def test_creation_change_and_deletion_are_followed(
    kubernetes: KubernetesCluster, namespace: str
) -> None:
    key = ObjectKey("ConfigMap", namespace, "a")
    async with informed(namespace, kubernetes) as cache:
        for value in ("1", "2"):
            await kubernetes.apply("ConfigMap", config(namespace, "a", x=value))
            await until(cache, lambda v=value: (cache.get(key) or {}).get("data") == {"x": v})
        await kubernetes.delete(key)
        await until(cache, lambda: cache.get(key) is None)


def test_a_deletion_is_no_late_event() -> None:
    """Its object was last written when it was last written, perhaps days ago."""
    long_ago = {"managedFields": [{"time": "2020-01-01T00:00:00Z", "operation": "Update"}]}
    name, labels = "espalier_watch_event_age_seconds_count", {"kind": "Aged"}
    for type_ in ("ADDED", "MODIFIED", "DELETED", None):
        informer._count("Aged", type_, {"metadata": long_ago})
    assert REGISTRY.get_sample_value(name, labels) == 2


async def test_only_objects_with_the_labels_are_watched(
    kubernetes: KubernetesCluster, namespace: str
) -> None:
    foreign = {"metadata": {"name": "foreign", "namespace": namespace}}
    async with informed(namespace, kubernetes) as cache:
        await kubernetes.apply("ConfigMap", foreign)
        await kubernetes.apply("ConfigMap", config(namespace, "later"))
        await until(
            cache, lambda: cache.get(ObjectKey("ConfigMap", namespace, "later")) is not None
        )
        assert [key.name for key in cache.keys("ConfigMap")] == ["later"]


async def test_objects_are_watched_without_a_trace_on_them(
    kubernetes: KubernetesCluster, namespace: str, head: dict[str, Any]
) -> None:
    key = ObjectKey("CheckpointHead", namespace, "arith")
    await kubernetes.create("CheckpointHead", head)
    async with informed(namespace, kubernetes) as cache:
        written = await kubernetes.apply("CheckpointHead", head | {"spec": PINNED})
        version = int(written["metadata"]["resourceVersion"])
        await until(cache, lambda: cache.version(key) == version)
    # kopf has ended, and with it whatever its handlers had to write.
    assert await kubernetes.get(key) == written


async def test_a_deletion_that_no_watch_reported_is_noticed_after_a_relist(
    kubernetes: KubernetesCluster, namespace: str
) -> None:
    lost, kept = (
        ObjectKey("ConfigMap", namespace, "lost"),
        ObjectKey("ConfigMap", namespace, "kept"),
    )
    async with (
        LossyProxy(kubernetes) as proxy,
        informed(namespace, Through(kubernetes, proxy.url)) as cache,
    ):
        await kubernetes.apply("ConfigMap", config(namespace, "lost"))
        await kubernetes.apply("ConfigMap", config(namespace, "kept"))
        await until(cache, lambda: None not in (cache.get(lost), cache.get(kept)))

        proxy.blind()
        await kubernetes.delete(lost)
        proxy.expire()

        await until(cache, lambda: cache.get(lost) is None)
        assert cache.get(kept) is not None


async def test_events_flow_again_after_a_relist(
    kubernetes: KubernetesCluster, namespace: str
) -> None:
    key = ObjectKey("ConfigMap", namespace, "late")
    async with (
        LossyProxy(kubernetes) as proxy,
        informed(namespace, Through(kubernetes, proxy.url)) as cache,
    ):
        proxy.expire()
        await kubernetes.apply("ConfigMap", config(namespace, "late"))
        await until(cache, lambda: cache.get(key) is not None)


@pytest.mark.parametrize("status", [403, 503])
async def test_events_flow_again_however_often_they_were_refused(
    kubernetes: KubernetesCluster, namespace: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """As while a namespace is deleted and made anew, or an API server is being replaced."""
    monkeypatch.setattr(handlers, "RETRY_SECONDS", (0.01,))
    key = ObjectKey("ConfigMap", namespace, "late")
    async with (
        LossyProxy(kubernetes) as proxy,
        informed(namespace, Through(kubernetes, proxy.url)) as cache,
    ):
        proxy.refuse(status)
        await kubernetes.apply("ConfigMap", config(namespace, "late"))
        async with asyncio.timeout(LIMIT_SECONDS):
            for _ in range(20 * len(WATCHED)):
                await proxy.refused.acquire()
        assert cache.get(key) is None
        proxy.relent()
        await until(cache, lambda: cache.get(key) is not None)


async def test_it_ends_in_order_while_it_is_refused(
    kubernetes: KubernetesCluster, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        LossyProxy(kubernetes) as proxy,
        informed(namespace, Through(kubernetes, proxy.url)),
    ):
        proxy.refuse(403)
        async with asyncio.timeout(LIMIT_SECONDS):
            await proxy.refused.acquire()
    assert "kopf did not end" not in caplog.text


async def test_an_error_that_ends_kopf_ends_the_informer(
    kubernetes: KubernetesCluster, namespace: str
) -> None:
    """Otherwise a process would go on, hold its lease, and see nothing."""
    settings = InformerSettings((namespace,), WATCHED, ready_seconds=LIMIT_SECONDS)
    stop, ready = asyncio.Event(), asyncio.Event()
    async with LossyProxy(kubernetes) as proxy, asyncio.timeout(LIMIT_SECONDS):
        through = Through(kubernetes, proxy.url)
        running = asyncio.create_task(informer.run(settings, Cache(), stop, ready, through))
        await ready.wait()
        proxy.fail()
        with pytest.raises(Exception, match="Error in the watch-stream"):
            await running


async def test_a_kind_that_cannot_be_watched_is_named(
    kubernetes: KubernetesCluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Resource("Absent", "espalier.dev", "v1alpha1", "absents")
    monkeypatch.setattr(objects, "KINDS", {**objects.KINDS, "Absent": absent})
    settings = InformerSettings((namespace,), {"Absent": {}}, ready_seconds=1)
    stop, ready = asyncio.Event(), asyncio.Event()

    with pytest.raises(InformerError, match=f"absents in namespace {namespace}.*CRDs"):
        await informer.run(settings, Cache(), stop, ready, kubernetes)


async def test_other_tasks_of_the_process_outlive_the_informer(
    kubernetes: KubernetesCluster, namespace: str
) -> None:
    async with informed(namespace, kubernetes):
        other = asyncio.create_task(asyncio.Event().wait())
    assert not other.done()
    other.cancel()


async def test_rights_to_get_list_and_watch_in_one_namespace_suffice(
    apiserver: ApiServer, kubernetes: KubernetesCluster, namespace: str, head: dict[str, Any]
) -> None:
    where = ("-n", namespace)
    resources = "--resource=checkpointheads.espalier.dev,configmaps"
    apiserver.kubectl("create", "role", "reader", "--verb=get,list,watch", resources, *where)
    account = f"--serviceaccount={namespace}:default"
    apiserver.kubectl("create", "rolebinding", "reader", "--role=reader", account, *where)
    token = apiserver.kubectl("create", "token", "default", *where).strip()
    configuration = Configuration(host=apiserver.url)
    configuration.ssl_ca_cert = str(apiserver.directory / "ca.crt")
    configuration.api_key["BearerToken"] = f"Bearer {token}"

    async with (
        KubernetesCluster(configuration) as reader,
        informed(namespace, reader) as cache,
    ):
        await kubernetes.apply("CheckpointHead", head)
        await until(cache, lambda: bool(cache.list("CheckpointHead", model="arith")))
