"""The processes of a real sampler: what they listen on, and what is told when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.listening import family, listeners
from tests.sampler import server, tiny

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

# In the place of a pod's address: nobody listens here who was not told the name of this host.
OF_THE_POD = "127.0.0.2"
LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Rollout]:
    """A server on a host that is called as a kubelet calls a container: its name is the pod's."""
    model = tiny.make_model(tmp_path_factory.mktemp("model"))
    volume = tmp_path_factory.mktemp("weights")
    base = tiny.commit_base(volume, model)
    adapter = tiny.commit_adapter(volume, model, base, seed=1)
    hosts = tmp_path_factory.mktemp("etc") / "hosts"
    hosts.write_text(f"{LOOPBACK} localhost\n{OF_THE_POD} arith-rollout-0\n")
    named = f'hostname arith-rollout-0 && mount --bind {hosts} /etc/hosts && exec "$@"'
    within = ("unshare", "--user", "--map-root-user", "--uts", "--mount", "sh", "-c", named, "sh")
    # Else it ends within 5 s of its engine's death.
    stays = {"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}
    process = server.start(volume, base, within=within, environment=stays)
    try:
        server.wait_healthy(process)
        assert process.serve(f"tiny@{adapter[7:19]}").status_code == 200
        assert process.complete("base", "1", max_tokens=1).status_code == 200
        yield process
    finally:
        process.stop()


def test_nothing_but_its_port_listens_beyond_loopback(
    rollout: server.Rollout,
) -> None:
    port = httpx.URL(rollout.url).port
    processes = family(rollout.process.pid)
    assert len(processes) > 1
    found = [listener for process in processes for listener in listeners(process)]
    over_the_network = {(one.address, one.port) for one in found if one.protocol != "unix"}
    assert ("0.0.0.0", port) in over_the_network
    assert {address for address, at in over_the_network if at != port} == {LOOPBACK}


def test_sockets_that_are_files_are_its_users_alone(rollout: server.Rollout) -> None:
    processes = family(rollout.process.pid)
    found = [one for process in processes for one in listeners(process) if one.protocol == "unix"]
    assert found
    for listener in found:
        assert not listener.is_abstract
        assert Path(listener.address).is_relative_to(rollout.log.parent)
        assert not listener.is_writable_by_others


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_dead_engine_is_told_to_anybody_and_why_to_the_log_alone(
    rollout: server.Rollout, path: str
) -> None:
    _, *engines = family(rollout.process.pid)
    for engine in engines:
        os.kill(engine, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (answer := httpx.get(rollout.url + path, timeout=60)).status_code == 200:
        assert time.monotonic() < deadline, "the death is not noticed"
        time.sleep(0.05)
    assert answer.status_code == 503
    assert answer.json() == {
        "reason": "EngineDead",
        "detail": "the engine is not healthy; the sampler's log says why",
        "remedy": "the kubelet restarts it",
    }
    assert "EngineDeadError" in "".join(f"{name}{value}" for name, value in logged(rollout).items())


def logged(rollout: server.Rollout) -> dict[str, object]:
    """The line of the log about the engine's health."""
    lines = [line for line in rollout.log.read_text().splitlines() if line.startswith("{")]
    return next(
        found for found in map(json.loads, lines) if "the engine is not healthy" in found["message"]
    )
