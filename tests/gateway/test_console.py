"""The console's API: what it tells whom, how it follows changes, how it moves heads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from dev.apiserver import ApiServer
from tests.gateway.conftest import Gateway, token
from tests.gateway.process import apply
from tests.gateway.world import World, condition, digest

from espalier.api.meta import API_VERSION
from espalier.api.wire.rollout_control import KEPT_ROLLOUTS
from espalier.core.head.head_request import track
from espalier.core.names import GATEWAY_AUDIENCE
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.console.streams import OF_ONE_MOST
from espalier.gateway.world.world import NamespacedName

pytestmark = pytest.mark.apiserver
API = "/console/api/v1"


def tree(world: World) -> NamespacedName:
    """Three steps on main, two on b2 from the first; the head serves the last."""
    model = world.model("arith", conditions=[condition("Ready", "True")])
    node(world, model, "arith-000001", "1", step=1, reward="0.1")
    node(world, model, "arith-000002", "2", step=2, reward="0.25", parent="arith-000001")
    node(world, model, "arith-b2-000002", "3", step=2, term=2, branch="b2", parent="arith-000001")
    world.head(model, digest("3"), step=2, term=2, checkpoint="arith-b2-000002", agreed=track())
    return model


def node(
    world: World,
    model: NamespacedName,
    name: str,
    seed: str,
    *,
    step: int,
    term: int = 1,
    branch: str = "main",
    parent: str = "",
    reward: str = "",
) -> None:
    """A checkpoint of a run, with its figures."""
    figures = {"reward/mean": reward, "eval/held-out/mean_reward": "0.5"} if reward else {}
    figures |= {"eval/held-out/mean_reward_low": "0.4", "eval/held-out/mean_reward_high": "0.6"}
    metrics = [{"name": key, "value": value} for key, value in figures.items()]
    held = [metric for metric in metrics if metric["name"].startswith("eval/")]
    spec: dict[str, Any] = {"modelRef": {"name": model.name}, "runRef": {"name": "arith-run"}}
    spec |= {"step": step, "branch": branch, "term": term, "digest": digest(seed)}
    spec |= {"uri": "pvc://weights/x"} | ({"parentRef": {"name": parent}} if parent else {})
    found = [{"name": "held-out", "tasks": 20, "metrics": held}]
    status = {"observedGeneration": 1, "metrics": metrics, "evaluations": found}
    world.put("Checkpoint", name, model.namespace, spec=spec, status=status)


async def test_a_caller_sees_the_models_that_it_may_get_and_no_name_of_others(
    gateway: Gateway,
) -> None:
    tree(gateway.world)
    seen = await (await gateway.get(f"{API}/models", gateway.users.reader)).json()
    assert [model["name"] for model in seen["models"]] == ["arith"]
    assert seen["namespaces"] == [gateway.users.namespace]
    unseen = await gateway.get(f"{API}/models", gateway.users.stranger)
    assert (await unseen.json())["models"] == []
    home = f"{API}/models/{gateway.users.namespace}"
    there = await (await gateway.get(f"{home}/arith", gateway.users.stranger)).json()
    absent = await (await gateway.get(f"{home}/never", gateway.users.stranger)).json()
    # Whether it is there or not, the refusal is the same.
    assert there == {key: said.replace("never", "arith") for key, said in absent.items()}
    assert there["reason"] == "Forbidden"
    assert (await gateway.get(f"{API}/models", "")).status == 401


async def test_a_tree_has_branches_figures_and_heads_with_what_owns_them(
    gateway: Gateway, apiserver: ApiServer, lookers: dict[str, str]
) -> None:
    model = tree(gateway.world)
    stored(apiserver, model)
    answer = await gateway.get(f"{API}/models/{model}", lookers["mover"])
    assert answer.headers["Cache-Control"] == "no-store"
    seen = await answer.json()
    nodes = {node["name"]: node for node in seen["checkpoints"]}
    assert nodes["arith-b2-000002"]["parent"] == "arith-000001"
    assert nodes["arith-000002"]["reward"] == 0.25
    assert [nodes[name]["heads"] for name in ("arith-000002", "arith-b2-000002")] == [[], ["arith"]]
    (found,) = nodes["arith-000002"]["evaluations"]
    assert found == {
        "name": "held-out",
        "tasks": 20,
        "mean_reward": 0.5,
        "low": 0.4,
        "high": 0.6,
    }
    (head,) = seen["heads"]
    assert (head["current"], head["owner"], head["may_move"]) == ("arith-b2-000002", "", True)
    assert head["moved_by"].startswith("kubectl")
    assert "reward/mean" in seen["metrics"]
    looking = await (await gateway.get(f"{API}/models/{model}", lookers["looker"])).json()
    assert looking["heads"][0]["may_move"] is False


async def test_a_metric_is_a_line_for_each_branch_with_its_interval(gateway: Gateway) -> None:
    model = tree(gateway.world)
    path = f"{API}/models/{model}/series?metric=eval/held-out/mean_reward"
    (line,) = (await (await gateway.get(path, gateway.users.reader)).json())["lines"]
    assert line["branch"] == "main"
    assert line["runs"] == ["arith-run", "arith-run"]
    assert (line["steps"], line["values"]) == ([1, 2], [0.5, 0.5])
    assert (line["low"], line["high"]) == ([0.4, 0.4], [0.6, 0.6])
    missing = await gateway.get(f"{API}/models/{model}/series", gateway.users.reader)
    assert missing.status == 422


async def test_what_a_run_waits_for_is_told_of_runs_that_the_caller_may_get(
    gateway: Gateway, lookers: dict[str, str]
) -> None:
    model = tree(gateway.world)
    gateway.world.run(model, "arith-run")
    path = f"{API}/models/{model}/runs"
    (run,) = (await (await gateway.get(path, lookers["looker"])).json())["runs"]
    assert run["waits_for"].startswith("arith-run")
    assert (await (await gateway.get(path, gateway.users.reader)).json())["runs"] == []


async def test_kept_rollouts_come_from_a_sampler_and_infinities_as_null(
    gateway: Gateway, lookers: dict[str, str], upstream: Any
) -> None:
    model = tree(gateway.world)

    async def sampler(request: web.Request) -> web.Response:
        assert request.path == KEPT_ROLLOUTS
        assert request.query["checkpoint"] == "arith@" + "1" * 12
        text = '{"records":[{"completion":"<b>","logprobs":[-Infinity,-0.1]}],"total":7,"next":1}'
        return web.Response(text=text, content_type="application/json")

    pod = await upstream(sampler)
    gateway.world.pod(model, "rollout", ip="127.0.0.1", port=pod.port)
    path = f"{API}/models/{model}/checkpoints/arith-000001/rollouts"
    page = await (await gateway.get(path, lookers["looker"])).json()
    assert page["records"] == [{"completion": "<b>", "logprobs": [None, -0.1]}]
    assert (page["total"], page["next"]) == (7, 1)
    # Who may get the model alone may not read what was sampled for it.
    assert (await gateway.get(path, gateway.users.reader)).status == 403
    assert (await gateway.get(f"{path}?after=-1", lookers["looker"])).status == 422
    other = path.replace("arith-000001", "other-000001")
    assert (await gateway.get(other, lookers["looker"])).status == 404


async def test_without_a_ready_sampler_kept_rollouts_say_why(
    gateway: Gateway, lookers: dict[str, str]
) -> None:
    model = tree(gateway.world)
    path = f"{API}/models/{model}/checkpoints/arith-000001/rollouts"
    answer = await gateway.get(path, lookers["looker"])
    assert answer.status == 503
    assert "kept rollouts are read by the model's samplers" in (await answer.json())["detail"]


async def test_a_stream_tells_of_each_change_of_its_model_and_of_no_other(
    gateway: Gateway,
) -> None:
    model = tree(gateway.world)
    async with streamed(gateway, f"{API}/models/{model}/changes") as events:
        assert await anext(events) == ("changed", {"what": "model"})
        other = gateway.world.model("other")
        gateway.world.head(other, "")
        node(gateway.world, model, "arith-b2-000003", "4", step=3, term=2, branch="b2")
        assert await anext(events) == ("changed", {"what": "model"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.8):
                await anext(events)


async def test_a_stream_ends_when_the_right_is_gone(gateway: Gateway, apiserver: ApiServer) -> None:
    model, home = tree(gateway.world), ("-n", gateway.users.namespace)
    account = f"--serviceaccount={model.namespace}:passing"
    apiserver.kubectl("create", "serviceaccount", "passing", *home)
    apiserver.kubectl("create", "rolebinding", "passing", "--role=reader", account, *home)
    own = token(apiserver, model.namespace, "passing", GATEWAY_AUDIENCE)
    async with streamed(gateway, f"{API}/models/{model}/changes", own) as events:
        assert (await anext(events))[0] == "changed"
        apiserver.kubectl("delete", "rolebinding", "passing", *home)
        auth = Authenticator(gateway.context.cluster)
        user = await auth.user(f"Bearer {own}")
        while await auth.allowed(user, "get", "trainablemodels", model):
            auth = Authenticator(gateway.context.cluster)
            await asyncio.sleep(0.1)
        # As after the minute for which the gateway remembers an answer.
        gateway.context.auth._access._granted.clear()
        node(gateway.world, model, "arith-000003", "4", step=3)
        event, refusal = await anext(events)
    assert (event, refusal["reason"]) == ("refused", "Forbidden")


async def test_one_caller_opens_so_many_streams_which_a_drain_ends(gateway: Gateway) -> None:
    model = tree(gateway.world)
    path = f"{API}/models/{model}/changes"
    opened = [await gateway.get(path, gateway.users.reader) for _ in range(OF_ONE_MOST)]
    refused = await gateway.get(path, gateway.users.reader)
    assert refused.status == 429
    assert (await refused.json())["reason"] == "TooManyStreams"
    # A gateway that drains ends them all, so that none holds it up.
    await gateway.app.shutdown()
    async with asyncio.timeout(60):
        for stream in opened:
            with suppress(aiohttp.ClientError):
                await stream.content.read()


async def test_a_head_is_moved_by_those_who_may_and_by_nobody_else(
    gateway: Gateway, apiserver: ApiServer, lookers: dict[str, str]
) -> None:
    model = tree(gateway.world)
    stored(apiserver, model)
    path, pin = f"{API}/heads/{model}", {"mode": "Pin", "checkpoint": "arith-000001"}
    refused = await gateway.request("PUT", path, lookers["looker"], json=pin)
    assert refused.status == 403
    assert "may not update checkpointheads" in (await refused.json())["detail"]
    unknown = await gateway.request(
        "PUT", path, lookers["mover"], json={**pin, "checkpoint": "other-000001"}
    )
    assert unknown.status == 404
    for field, value in (("checkpoint", "arith-000001"), ("on_pin", "Pause")):
        both = await gateway.request(
            "PUT", path, lookers["mover"], json={"mode": "Track", field: value}
        )
        assert both.status == 422
        assert (await both.json())["detail"].startswith(f"{field}: ")
    moved = await gateway.request("PUT", path, lookers["mover"], json=pin)
    assert moved.status == 200
    spec = live(apiserver, model)["spec"]
    assert (spec["mode"], spec["checkpointRef"], spec["onPin"]) == (
        "Pin",
        {"name": "arith-000001"},
        "Branch",
    )


async def test_a_head_that_git_owns_is_not_moved_and_the_commit_is_told(
    gateway: Gateway, apiserver: ApiServer, lookers: dict[str, str]
) -> None:
    model = tree(gateway.world)
    stored(apiserver, model, labels={"kustomize.toolkit.fluxcd.io/name": "team"})
    pin = {"mode": "Pin", "checkpoint": "arith-000001"}
    refused = await gateway.request("PUT", f"{API}/heads/{model}", lookers["mover"], json=pin)
    assert refused.status == 409
    assert "spec.checkpointRef.name: arith-000001" in (await refused.json())["remedy"]
    assert live(apiserver, model)["spec"]["mode"] == "Track"
    seen = await (await gateway.get(f"{API}/models/{model}", lookers["mover"])).json()
    assert seen["heads"][0]["owner"] == "Flux (team)"


def stored(server: ApiServer, model: NamespacedName, labels: dict[str, str] | None = None) -> None:
    """The head, following training, at the API server too."""
    server.kubectl("delete", "ckhead", model.name, "-n", model.namespace, "--ignore-not-found")
    spec = {"modelRef": {"name": model.name}, "mode": "Track"}
    head = {"apiVersion": API_VERSION, "kind": "CheckpointHead", "spec": spec}
    apply(
        server, model.namespace, head | {"metadata": {"name": model.name, "labels": labels or {}}}
    )


def live(server: ApiServer, model: NamespacedName) -> dict[str, Any]:
    """The head as the API server has it."""
    text = server.kubectl("get", "ckhead", model.name, "-n", model.namespace, "-o", "json")
    body: dict[str, Any] = json.loads(text)
    return body


@asynccontextmanager
async def streamed(
    gateway: Gateway, path: str, token: str = ""
) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """The events of a stream."""
    answer = await gateway.get(path, token or gateway.users.reader)
    assert answer.content_type == "text/event-stream"
    try:
        yield _events(answer)
    finally:
        answer.close()


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    while True:
        text = (await answer.content.readuntil(b"\n\n")).decode()
        if text.startswith(":"):
            continue
        event, data = text.strip().split("\n")
        yield event.removeprefix("event: "), json.loads(data.removeprefix("data: "))
