"""The local kubelet with real processes: servers that are kept up, Jobs that end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.kube.children import IMAGE_BASE, SETTINGS, model_of
from tests.trainer import tiny

from espalier.api.source import Resolved
from espalier.api.wire.problem import Problem
from espalier.core.manifests.importer import importer_job
from espalier.core.pods.pods import live, read_job, read_pod
from espalier.core.volume import imports_of
from espalier.kube.objects import Body, ObjectKey
from espalier.local import kubelet, pod_addresses
from espalier.local.free_memory import GIB, Memory
from espalier.local.kubelet import Kubelet
from espalier.local.layout import Layout, StartError
from espalier.local.memory_apiserver import MemoryCluster
from espalier.local.pod_process import CompanionPlan, InitPlan, ProcessPlan
from espalier.local.running import CANNOT_START, Running
from espalier.trainer.volume.checkpoint_store import CheckpointStore

SERVER = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer((os.environ["ESPALIER_HOST"], 8000), Ready).serve_forever()
"""
GIVES_UP = """
import json, os, pathlib
said = {"detail": "wrong", "reason": "Wrong", "remedy": "mend"}
pathlib.Path(os.environ["ESPALIER_TERMINATION_LOG"]).write_text(json.dumps(said))
raise SystemExit(64)
"""


def now() -> str:
    return "2026-01-01T00:00:00Z"


def workload(kind: str, role: str, script: str, **spec: Any) -> Body:
    labels = {"espalier.dev/role": role}
    container = {"name": role, "command": ["python", "-c", script], "volumeMounts": []}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "w", "namespace": "default"},
        "spec": {
            **({"replicas": 1} if kind != "Job" else {"backoffLimit": 1}),
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            **spec,
        },
    }


class Node:
    """A cluster, and a kubelet that works on it."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.cluster = cluster

    def pod(self) -> Body:
        return self.cluster.objects.get(ObjectKey("Pod", "default", "w-0"), {})

    async def until(self, reached: Callable[[], bool]) -> None:
        changed = asyncio.Event()
        self.cluster.watch(lambda event, body: changed.set())
        async with asyncio.timeout(120):
            while not reached():
                await changed.wait()
                changed.clear()

    def ready(self) -> bool:
        return bool(self.pod()) and read_pod(self.pod()).ready

    def pid(self) -> int:
        state: str = self.pod()["status"]["containerStatuses"][0]["containerID"]
        return int(state.split("/")[2])


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    cluster, stop = MemoryCluster(now), asyncio.Event()
    async with aiohttp.ClientSession() as session:
        kubelet = Kubelet(cluster, Layout(tmp_path, {}), session, now)
        task = asyncio.create_task(kubelet.run(stop))
        yield Node(cluster)
        stop.set()
        await task


async def test_a_server_is_ready_once_it_answers_and_started_again_when_it_dies(node: Node) -> None:
    # --host is the trainer's own; a rollout takes its address from the environment.
    await node.cluster.apply("Deployment", workload("Deployment", "rollout", SERVER))
    await node.until(node.ready)
    first = read_pod(node.pod())
    assert first.ip.startswith("127.")
    assert first.started
    os.kill(node.pid(), signal.SIGKILL)
    await node.until(lambda: node.ready() and read_pod(node.pod()).instance != first.instance)


async def test_a_server_that_does_not_answer_in_time_is_started_again_and_says_so(
    node: Node,
) -> None:
    body = workload("Deployment", "rollout", "import time; time.sleep(600)")
    template = body["spec"]["template"]
    template["spec"]["containers"][0]["startupProbe"] = {"periodSeconds": 1, "failureThreshold": 2}
    await node.cluster.apply("Deployment", body)
    await node.until(lambda: bool(node.pod()) and "startupSeconds" in read_pod(node.pod()).waiting)
    assert read_pod(node.pod()).waiting_reason == "CrashLoopBackOff"
    await node.until(lambda: "running" in node.pod()["status"]["containerStatuses"][0]["state"])


async def test_what_prepares_a_pod_takes_nothing_of_its_startup_seconds(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, start, late = kubelet._clock, Running.start, 0.0

    async def prepared(planned: ProcessPlan, log: Path) -> Running:
        nonlocal late
        late += 600.0
        return await start(planned, log)

    monkeypatch.setattr(kubelet, "_clock", lambda: clock() + late)
    monkeypatch.setattr(Running, "start", prepared)
    body = workload("Deployment", "rollout", SERVER)
    container = body["spec"]["template"]["spec"]["containers"][0]
    container["startupProbe"] = {"periodSeconds": 1, "failureThreshold": 60}
    await node.cluster.apply("Deployment", body)
    await node.until(node.ready)


async def test_labels_and_annotations_of_a_template_are_its_pods(node: Node) -> None:
    body = workload("Deployment", "rollout", SERVER)
    body["spec"]["template"]["metadata"]["annotations"] = {"team": "research"}
    await node.cluster.apply("Deployment", body)
    await node.until(lambda: bool(node.pod()))
    metadata = node.pod()["metadata"]
    assert metadata["annotations"] == {"team": "research"}
    assert metadata["labels"] == {"espalier.dev/role": "rollout"}


async def test_a_server_that_dies_again_and_again_shows_the_last_lines_of_its_log(
    node: Node,
) -> None:
    dies = "import sys; print('loading'); sys.exit('ValueError: no such file')"
    await node.cluster.apply("Deployment", workload("Deployment", "rollout", dies))
    await node.until(lambda: bool(node.pod()) and "no such" in read_pod(node.pod()).waiting)
    read = read_pod(node.pod())
    assert read.waiting_reason == "CrashLoopBackOff"
    assert read.waiting == (
        "CrashLoopBackOff: the container ended with exit code 1: loading | ValueError: no such file"
    )
    assert live([read])


async def test_two_kubelets_of_one_machine_give_other_addresses(tmp_path: Path) -> None:
    clusters = MemoryCluster(now), MemoryCluster(now)
    stop = asyncio.Event()
    async with aiohttp.ClientSession() as session:
        kubelets = [
            Kubelet(c, Layout(tmp_path / str(i), {}), session, now) for i, c in enumerate(clusters)
        ]
        running = [asyncio.create_task(kubelet.run(stop)) for kubelet in kubelets]
        nodes = [Node(cluster) for cluster in clusters]
        for node in nodes:
            await node.cluster.apply("Deployment", workload("Deployment", "rollout", SERVER))
            await node.until(node.ready)
        assert len({read_pod(node.pod()).ip for node in nodes}) == 2
        stop.set()
        await asyncio.gather(*running)


async def test_a_server_that_is_scaled_down_ends(node: Node) -> None:
    await node.cluster.apply("Deployment", workload("Deployment", "rollout", SERVER))
    await node.until(node.ready)
    pid = node.pid()
    await node.cluster.apply("Deployment", workload("Deployment", "rollout", SERVER, replicas=0))
    await node.until(lambda: not node.pod())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_job_that_did_its_work_is_complete(node: Node) -> None:
    await node.cluster.apply("Job", workload("Job", "importer", "pass"))
    key = ObjectKey("Job", "default", "w")
    await node.until(lambda: read_job(node.cluster.objects[key]).finished)
    assert read_job(node.cluster.objects[key]).complete


async def failed_for_good(node: Node) -> Problem:
    """Waits until the Job has failed at its first try; what its pod left."""
    key = ObjectKey("Job", "default", "w")
    await node.until(lambda: read_job(node.cluster.objects[key]).finished)
    assert read_job(node.cluster.objects[key]).failure.startswith("PodFailurePolicy")
    await node.until(lambda: read_pod(node.pod()).problem is not None)
    problem = read_pod(node.pod()).problem
    assert problem is not None
    return problem


async def test_a_job_that_only_the_user_can_mend_fails_at_once_with_its_problem(
    node: Node,
) -> None:
    await node.cluster.apply("Job", workload("Job", "importer", GIVES_UP))
    problem = await failed_for_good(node)
    assert (problem.reason, problem.remedy) == ("Wrong", "mend")


def importing(place: Path, first: str, then: str) -> Body:
    """A Job whose work an init container begins, by a module in ``place``."""
    (place / "begins.py").write_text(first)
    body = workload("Job", "importer", then)
    spec = body["spec"]["template"]["spec"]
    spec["containers"][0]["name"] = "place"
    found = [{"name": "PYTHONPATH", "value": str(place)}]
    begins = {"name": "importer", "command": ["python", "-m", "begins"], "env": found}
    spec["initContainers"] = [begins]
    spec["restartPolicy"] = "Never"
    return body


WAITS = """
import pathlib, time
while not pathlib.Path("GOES_ON").exists():
    time.sleep(0.05)
"""
SAYS = """
import os, pathlib
pathlib.Path("RESULT").touch()
pathlib.Path(os.environ["ESPALIER_TERMINATION_LOG"]).write_text("done")
"""


async def test_what_an_importer_begins_its_main_container_goes_on_with(
    node: Node, tmp_path: Path
) -> None:
    goes_on, result = tmp_path / "goes-on", tmp_path / "result"
    first = WAITS.replace("GOES_ON", str(goes_on))
    then = SAYS.replace("RESULT", str(result))
    await node.cluster.apply("Job", importing(tmp_path, first, then))
    # Others are looked after while it works.
    other = workload("Deployment", "rollout", SERVER)
    other["metadata"]["name"] = "other"
    await node.cluster.apply("Deployment", other)
    server = ObjectKey("Pod", "default", "other-0")

    def serves() -> bool:
        pod = node.cluster.objects.get(server, {})
        return "status" in pod and read_pod(pod).ready

    await node.until(serves)
    brings = read_pod(node.pod())
    assert (brings.started, brings.preparing, brings.placing) == (True, True, False)
    assert not result.exists()
    goes_on.touch()
    key = ObjectKey("Job", "default", "w")
    await node.until(lambda: read_job(node.cluster.objects[key]).complete)
    await node.until(lambda: read_pod(node.pod()).message == "done")
    assert not read_pod(node.pod()).preparing


async def test_an_importer_that_only_the_user_can_mend_ends_the_job_before_its_main_container(
    node: Node, tmp_path: Path
) -> None:
    then = SAYS.replace("RESULT", str(tmp_path / "result"))
    await node.cluster.apply("Job", importing(tmp_path, GIVES_UP, then))
    assert (await failed_for_good(node)).reason == "Wrong"
    assert not (tmp_path / "result").exists()


async def test_a_models_image_is_imported_as_its_jobs_manifest_says(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "model")
    job = importer_job(model_of(), SETTINGS)
    layout = Layout(tmp_path / "state", {IMAGE_BASE["image"]: tmp_path / "model"})
    cluster, stop = MemoryCluster(now), asyncio.Event()
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(Kubelet(cluster, layout, session, now).run(stop))
        await cluster.apply("Job", job)
        key = ObjectKey("Job", "default", "arith-import")
        await Node(cluster).until(lambda: read_job(cluster.objects[key]).finished)
        pod = ObjectKey("Pod", "default", "arith-import-0")
        await Node(cluster).until(lambda: bool(read_pod(cluster.objects[pod]).message))
        stop.set()
        await task
    resolved = Resolved.model_validate_json(read_pod(cluster.objects[pod]).message)
    volume = layout.volume("espalier-weights")
    CheckpointStore(volume, "").verify("base", resolved.digest)
    assert not imports_of(volume, "arith").exists()


def not_executable(place: Path) -> Path:
    program = place / "python"
    program.write_text("no program")
    return program


PROGRAMS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "none": (lambda place: place / "python", "No such file or directory"),
    "not executable": (not_executable, "Permission denied"),
}
QUIET = (sys.executable, "-c", "")


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def until(reached: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, reached)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("works_first", [False, True])
async def test_a_process_that_cannot_be_started_has_ended_and_says_why(
    tmp_path: Path, program: str, *, works_first: bool
) -> None:
    """Also one that would go on with what an init container has begun."""
    make, why = PROGRAMS[program]
    path = str(make(tmp_path))
    plan = ProcessPlan(
        copies=(),
        command=(path, "-m", "place"),
        environment={},
        message=tmp_path / "message",
        works_first=InitPlan("importer", QUIET, {}) if works_first else None,
    )
    running = await Running.start(plan, tmp_path / "log")
    await until(lambda: running.code is not None)
    assert running.code == CANNOT_START
    assert running.message.startswith(f"{path} -m place cannot be started: ")
    assert why in running.message
    await running.stop()


async def test_a_server_that_cannot_be_started_is_tried_again_and_says_why(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the environment that espalier dev runs in was removed."""
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    await node.cluster.apply("Deployment", workload("Deployment", "rollout", SERVER))
    await node.until(lambda: "status" in node.pod() and "128" in read_pod(node.pod()).died)
    assert f"{program} -c" in read_pod(node.pod()).died
    monkeypatch.undo()
    await node.until(node.ready)


async def test_what_runs_beside_a_pod_and_cannot_be_started_says_so_and_is_tried_again(
    tmp_path: Path,
) -> None:
    program, ran, log = tmp_path / "program", tmp_path / "ran", tmp_path / "log"
    beside = CompanionPlan((str(program), str(ran)), tmp_path, {"PATH": os.environ["PATH"]})
    plan = ProcessPlan(
        copies=(),
        command=(sys.executable, "-c", "import time; time.sleep(600)"),
        environment={},
        message=tmp_path / "message",
        companions=(beside,),
    )
    running = await Running.start(plan, log)
    await until(lambda: f"{program} {ran} cannot be started: " in log.read_text())
    made = tmp_path / "made"
    made.write_text('#!/bin/sh\ntouch "$1"\n')
    made.chmod(0o755)
    made.rename(program)
    await until(ran.exists)
    assert running.code is None
    await running.stop()


async def test_a_job_is_tried_again_as_often_as_it_says(node: Node, tmp_path: Path) -> None:
    script = f"open({str(tmp_path / 'tries')!r}, 'a').write('x'); raise SystemExit(75)"
    await node.cluster.apply("Job", workload("Job", "importer", script))
    key = ObjectKey("Job", "default", "w")
    await node.until(lambda: read_job(node.cluster.objects[key]).finished)
    assert read_job(node.cluster.objects[key]).failure.startswith("BackoffLimitExceeded")
    assert (tmp_path / "tries").read_text() == "xx"


async def test_an_image_that_is_not_here_says_what_to_give(node: Node) -> None:
    body = workload("Job", "importer", "pass")
    copy = {"name": "copy", "image": "model:1", "command": ["cp", "/models/.", "/source/"]}
    body["spec"]["template"]["spec"]["initContainers"] = [copy]
    await node.cluster.apply("Job", body)
    await node.until(lambda: bool(node.pod()) and bool(read_pod(node.pod()).waiting))
    assert "give --image model:1=DIRECTORY" in read_pod(node.pod()).waiting


def asking(memory: str) -> Body:
    body = workload("Deployment", "rollout", SERVER)
    body["spec"]["template"]["spec"]["containers"][0]["resources"] = {
        "requests": {"memory": memory}
    }
    return body


async def test_a_pod_waits_for_memory_that_another_one_asked_for_and_starts_once_it_is_gone(
    tmp_path: Path,
) -> None:
    cluster, stop = MemoryCluster(now), asyncio.Event()
    node = Node(cluster)
    async with aiohttp.ClientSession() as session:
        kubelet = Kubelet(cluster, Layout(tmp_path, {}), session, now, Memory(3 * GIB))
        task = asyncio.create_task(kubelet.run(stop))
        await cluster.apply("Deployment", asking("2Gi"))
        await node.until(node.ready)
        second = asking("1536Mi")
        second["metadata"]["name"] = "second"
        await cluster.apply("Deployment", second)
        key = ObjectKey("Pod", "default", "second-0")
        await node.until(lambda: key in cluster.objects and "status" in cluster.objects[key])
        refused = read_pod(cluster.objects[key])
        assert refused.waiting_reason == "Unschedulable"
        assert "it asks for 1.5 GiB, and of 3.0 GiB" in refused.waiting
        assert "other pods ask for 2.0 GiB" in refused.waiting
        assert "template.resources.requests.memory" in refused.waiting
        await cluster.delete(ObjectKey("Deployment", "default", "w"))
        await node.until(lambda: read_pod(cluster.objects[key]).ready)
        stop.set()
        await task


async def test_a_job_that_is_over_asks_for_no_memory(tmp_path: Path) -> None:
    cluster, stop = MemoryCluster(now), asyncio.Event()
    node = Node(cluster)
    async with aiohttp.ClientSession() as session:
        kubelet = Kubelet(cluster, Layout(tmp_path, {}), session, now, Memory(GIB))
        task = asyncio.create_task(kubelet.run(stop))
        job = workload("Job", "importer", "pass")
        job["metadata"]["name"] = "job"
        container = job["spec"]["template"]["spec"]["containers"][0]
        container["resources"] = {"requests": {"memory": "1Gi"}}
        await cluster.apply("Job", job)
        await node.until(
            lambda: read_job(cluster.objects[ObjectKey("Job", "default", "job")]).complete
        )
        await cluster.apply("Deployment", asking("1Gi"))
        await node.until(node.ready)
        stop.set()
        await task


async def test_a_program_at_the_pods_port_of_all_addresses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as program:
        program.bind(("", 0))
        program.listen()
        taken = program.getsockname()[1]
        monkeypatch.setattr(pod_addresses, "PORT", taken)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(StartError, match=f"listens on port {taken} at all addresses"):
                Kubelet(MemoryCluster(now), Layout(tmp_path, {}), session, now)


PARENT = """
import asyncio, pathlib, sys
from espalier.local.pod_process import ProcessPlan
from espalier.local.running import Running
async def main():
    root = pathlib.Path(sys.argv[1])
    sleep = (sys.executable, "-c", "import time; time.sleep(600)")
    plan = ProcessPlan((), sleep, {}, root / "message")
    print((await Running.start(plan, root / "log")).pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def runs(pid: int) -> bool:
    """Whether it does; an orphan that nobody reaps has ended all the same."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until_ended(pid: int) -> None:
    deadline = time.monotonic() + 30
    while runs(pid):
        assert time.monotonic() < deadline, f"{pid} outlived its parent by 30 s"
        time.sleep(0.05)


async def test_a_process_ends_with_an_espalier_dev_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(tmp_path)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    async with asyncio.timeout(60):
        child = int(await parent.stdout.readline())
        parent.kill()
        await parent.wait()
        await asyncio.to_thread(until_ended, child)


async def test_what_a_pod_had_under_tmp_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    cluster, stop = MemoryCluster(now), asyncio.Event()
    node = Node(cluster)
    async with aiohttp.ClientSession() as session:
        kubelet = Kubelet(cluster, Layout(tmp_path / "state", {}), session, now)
        task = asyncio.create_task(kubelet.run(stop))
        body = workload("Deployment", "rollout", SERVER)
        spec = body["spec"]["template"]["spec"]
        spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
        spec["containers"][0]["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
        await cluster.apply("Deployment", body)
        await node.until(node.ready)
        assert list(place.iterdir())
        stop.set()
        await task
    assert list(place.iterdir()) == []


STATUS = """
    def status(self):
        return 200 if self.path == "/healthz" or os.path.exists(os.environ["FILE"]) else 503
"""
WHILE_THERE = SERVER.replace("(200)", "(self.status())").replace(
    "class Ready(BaseHTTPRequestHandler):", f"class Ready(BaseHTTPRequestHandler):{STATUS}"
)


async def test_a_server_is_unready_after_as_long_as_its_probe_says_and_not_at_one_miss(
    node: Node, tmp_path: Path
) -> None:
    file = tmp_path / "serves"
    file.touch()
    body = workload("Deployment", "rollout", WHILE_THERE)
    (container,) = body["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": "FILE", "value": str(file)}]
    container["readinessProbe"] = {"periodSeconds": 2, "failureThreshold": 3}
    await node.cluster.apply("Deployment", body)
    await node.until(node.ready)
    seen: list[bool] = []
    node.cluster.watch(lambda event, body: seen.append(node.ready()))
    file.unlink()
    await asyncio.sleep(2)
    file.touch()
    await asyncio.sleep(1)
    assert all(seen)
    file.unlink()
    missed = asyncio.get_running_loop().time()
    await node.until(lambda: not node.ready())
    assert asyncio.get_running_loop().time() - missed >= 4
