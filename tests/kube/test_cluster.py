"""What only the real API server can show: field ownership, pages, refusals, reviews, time-outs."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import aiohttp.web
import pytest
from dev.apiserver import ApiServer
from kubernetes.aio.client.configuration import Configuration

from espalier.kube import apiserver, connections
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cluster import ClusterError
from espalier.kube.lease import LeadershipLostError
from espalier.kube.objects import ObjectKey

AUDIENCE = "espalier-gateway"


async def test_the_status_manager_owns_the_status_and_nothing_else(
    kubernetes: KubernetesCluster, head: dict[str, Any]
) -> None:
    await kubernetes.create("CheckpointHead", head)
    after = await kubernetes.apply_status("CheckpointHead", {**head, "status": {"term": 1}})

    owned = {
        entry["manager"]: (entry.get("subresource"), {*entry["fieldsV1"]})
        for entry in after["metadata"]["managedFields"]
    }

    assert owned["espalier-status"] == ("status", {"f:status"})
    assert "f:spec" in owned["espalier"][1]


async def test_a_list_of_several_pages_is_whole(
    kubernetes: KubernetesCluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apiserver, "PAGE_SIZE", 2)
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        body = {"metadata": {"name": name, "namespace": namespace, "labels": {"paged": "yes"}}}
        await kubernetes.apply("ConfigMap", body)

    found = await kubernetes.list("ConfigMap", namespace, {"paged": "yes"})

    assert [body["metadata"]["name"] for body in found] == names


async def test_a_refusal_carries_the_servers_reason_and_message(
    kubernetes: KubernetesCluster, head: dict[str, Any]
) -> None:
    with pytest.raises(ClusterError) as caught:
        await kubernetes.apply(
            "CheckpointHead", {**head, "spec": {**head["spec"], "mode": "Follow"}}
        )
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")
    assert "spec.mode" in caught.value.message


async def test_an_unreachable_server_is_named() -> None:
    async with KubernetesCluster(Configuration(host="http://127.0.0.1:1")) as nowhere:
        with pytest.raises(ClusterError) as caught:
            await nowhere.get(ObjectKey("Pod", "default", "any"))
    assert (caught.value.status, caught.value.reason) == (0, "ConnectionFailed")


async def test_a_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT_SECONDS", 0.2)

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silence, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with KubernetesCluster(Configuration(host=f"http://127.0.0.1:{port}")) as cluster:
            with pytest.raises(ClusterError) as caught:
                await cluster.get(ObjectKey("Pod", "default", "any"))
    assert caught.value.reason == "Timeout"


async def test_a_token_is_reviewed_for_its_audience(
    kubernetes: KubernetesCluster, apiserver: ApiServer, namespace: str
) -> None:
    token = apiserver.kubectl(
        "create", "token", "default", "-n", namespace, f"--audience={AUDIENCE}"
    ).strip()

    accepted = await kubernetes.review_token(token, [AUDIENCE])
    elsewhere = await kubernetes.review_token(token, [])

    assert accepted.authenticated
    assert accepted.username == f"system:serviceaccount:{namespace}:default"
    assert accepted.audiences == (AUDIENCE,)
    assert "system:serviceaccounts" in accepted.groups
    assert not elsewhere.authenticated


async def test_a_forged_token_is_refused(kubernetes: KubernetesCluster) -> None:
    review = await kubernetes.review_token("forged", [AUDIENCE])
    assert not review.authenticated
    assert review.error


async def test_access_is_what_rbac_grants(
    kubernetes: KubernetesCluster, apiserver: ApiServer, namespace: str
) -> None:
    where = ("-n", namespace)
    apiserver.kubectl(
        "create", "role", "sampler", "--verb=get", "--resource=trainablemodels.espalier.dev", *where
    )
    apiserver.kubectl("create", "rolebinding", "sampler", "--role=sampler", "--user=ada", *where)

    async def may(verb: str) -> bool:
        return await kubernetes.review_access(
            "ada", [], verb, "espalier.dev", "trainablemodels", namespace, "arith"
        )

    assert await may("get")
    assert not await may("update")


async def test_a_watch_session_is_authenticated(kubernetes: KubernetesCluster) -> None:
    async with kubernetes.watch_session() as session:
        answer = await session.get(f"{kubernetes.server}/api/v1/namespaces/default/pods")
    assert answer.status == 200


async def test_a_watch_session_sends_the_token_of_the_moment() -> None:
    configuration = Configuration(host="http://127.0.0.1:1")
    tokens = iter(["bearer first", "bearer second"])
    configuration.api_key["BearerToken"] = ""
    configuration.refresh_api_key_hook = lambda c: c.api_key.update(BearerToken=next(tokens))
    received: list[str] = []

    async def record(request: aiohttp.web.Request) -> aiohttp.web.Response:
        received.append(request.headers["Authorization"])
        return aiohttp.web.Response()

    async with KubernetesCluster(configuration) as cluster, cluster.watch_session() as session:
        server = aiohttp.web.Server(record)
        runner = aiohttp.web.ServerRunner(server)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        for _ in range(2):
            await session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        await runner.cleanup()

    assert received == ["bearer first", "bearer second"]


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("100000", 60.0), ("", 0.0), ("tomorrow", 0.0)]
)
async def test_a_throttled_call_says_how_long_to_wait(header: str, seconds: float) -> None:
    async def refuse(_: aiohttp.web.BaseRequest) -> aiohttp.web.Response:
        return aiohttp.web.Response(status=429, headers={"Retry-After": header})

    runner = aiohttp.web.ServerRunner(aiohttp.web.Server(refuse))
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with KubernetesCluster(Configuration(host=url)) as cluster:
        with pytest.raises(ClusterError) as caught:
            await cluster.get(ObjectKey("Pod", "default", "any"))
    await runner.cleanup()
    assert (caught.value.status, caught.value.retry_after) == (429, seconds)


async def test_a_fenced_cluster_reads_and_does_not_write(
    kubernetes: KubernetesCluster, namespace: str
) -> None:
    def lost() -> None:
        raise LeadershipLostError("another leads")

    fenced, key = kubernetes.fenced(lost), ObjectKey("ConfigMap", namespace, "a")
    before = await kubernetes.apply(
        "ConfigMap", {"metadata": {"name": "a", "namespace": namespace}, "data": {"x": "1"}}
    )
    changed = {"metadata": before["metadata"], "data": {"x": "2"}}
    intent = {"metadata": {"name": "a", "namespace": namespace}, "data": {"x": "3"}}
    for write in (
        fenced.apply("ConfigMap", intent),
        fenced.apply_status("ConfigMap", {**intent, "status": {}}),
        fenced.create("ConfigMap", {"metadata": {"name": "b", "namespace": namespace}}),
        fenced.replace("ConfigMap", changed),
        fenced.delete(key),
    ):
        with pytest.raises(LeadershipLostError):
            await write
    assert await fenced.get(key) == before
    assert "b" not in {c["metadata"]["name"] for c in await fenced.list("ConfigMap", namespace)}
