"""Forged pods on a real API server: whoever copies our labels gets no request and no token.

The forger may create pods and nothing else. Each forged pod has every label of an honest one, is
ready, comes first by name and answers whatever it is asked, commits of its own making included.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from dev.apiserver import ApiServer
from tests.simulation.kubelet import RESOLVED
from tests.simulation.scripted import digest
from tests.simulation.servers import ROLLOUT_IP, TRAINER_IP, Servers, serving
from tests.simulation.test_process import Stage, has_reason, is_current, stage
from tests.simulation.world import model_spec, run_spec

from espalier.api.wire.commits import Commit, CommitPage
from espalier.controllers.peers.peer import PORT
from espalier.core.manifests.labels import Role, child_labels, main_container
from espalier.kube.objects import Body

__all__ = ["stage"]

FORGED_IP = "127.77.0.66"
FORGED_DIGEST = digest("forged")


class Forger:
    """The server behind every forged pod; ``seen`` is what reached it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append(f"{request.path} {request.headers.get('Authorization', '')[:20]}")
        if request.path == "/commits":
            return web.Response(text=CommitPage(commits=[forged_commit()]).model_dump_json())
        return web.json_response({"adapters": [], "ready": True, "base": True})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, FORGED_IP, PORT).start()
        try:
            yield
        finally:
            await runner.cleanup()


def forged_commit() -> Commit:
    return Commit(
        index=1,
        name="tiny-000001",
        model="tiny",
        run="digits/forged",
        step=1,
        run_step=1,
        branch="main",
        term=1,
        parent="",
        parent_name="",
        digest=FORGED_DIGEST,
        size_bytes=1,
        lora_rank=16,
        learning_rate=1e-4,
        group_size=8,
        loss="importance_sampling",
        metrics={"rollout/reward/mean": 1.0},
        created="2026-01-01T00:00:00Z",
    )


async def forge(stage: Stage, role: Role, message: Body | None = None) -> None:
    """A pod with the labels of a role: ready, or ended with a message."""
    name, labels = f"aaa-{role}", child_labels(role, "tiny")
    metadata = {"name": name, "namespace": stage.namespace, "labels": labels}
    main = main_container(role)
    spec = {"containers": [{"name": main, "image": "x"}]}
    await stage.cluster.create("Pod", {"metadata": metadata, "spec": spec})
    state: Body = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    if message is not None:
        state = {"terminated": {"exitCode": 0, "message": json.dumps(message)}}
    container = {
        "name": main,
        "image": "x",
        "imageID": "x",
        "containerID": "containerd://1",
        "restartCount": 0,
        "ready": message is None,
        "started": message is None,
        "state": state,
    }
    status = {
        "phase": "Running" if message is None else "Succeeded",
        "podIP": FORGED_IP,
        "podIPs": [{"ip": FORGED_IP}],
        "conditions": [{"type": "Ready", "status": str(message is None)}],
        "containerStatuses": [container],
    }
    await stage.cluster.apply_status("Pod", {"metadata": metadata, "status": status})


async def metric(port: int, role: str, reason: str) -> float:
    """How many pods of a role the operator has ignored for a reason."""
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    line = f'espalier_pods_ignored_total{{reason="{reason}",role="{role}"}} '
    found = [row for row in text.splitlines() if row.startswith(line)]
    return float(found[0].removeprefix(line)) if found else 0.0


async def test_forged_pods_are_ignored_and_counted_and_forged_commits_become_nothing(
    apiserver: ApiServer, stage: Stage, namespace: str
) -> None:
    forger = Forger()
    servers = Servers(namespace, "tiny", await stage.keys())
    async with serving(servers), forger.serving():
        await forge(stage, "importer", {**RESOLVED, "digest": FORGED_DIGEST})
        await forge(stage, "rollout")
        await forge(stage, "trainer")
        await stage.apply("TrainableModel", "tiny", model_spec())
        await stage.apply("TrainingRun", "digits", run_spec("tiny", 1, driver="Client"))
        await stage.play("importer", "127.77.0.1", RESOLVED)
        await stage.play("rollout", ROLLOUT_IP, by=servers)
        await stage.until("CheckpointHead", "tiny", is_current(""))
        await stage.play("trainer", TRAINER_IP, by=servers)
        await stage.until("TrainingRun", "digits", has_reason("AwaitingClient"))
        honest = await servers.trainer.step("tiny")
        await stage.until("CheckpointHead", "tiny", is_current("tiny-000001"))
        model = await stage.get("TrainableModel", "tiny")
        assert model["status"]["resolved"]["digest"] == RESOLVED["digest"]
        made = await stage.get("Checkpoint", "tiny-000001")
        assert made["spec"]["digest"] == honest.digest
        assert forger.seen == []
        assert await metric(stage.health_port, "trainer", "NameUnknown") == 1
        assert await metric(stage.health_port, "rollout", "NoController") == 1
        assert await metric(stage.health_port, "importer", "NoController") == 1
