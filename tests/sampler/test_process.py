"""The processes of a real sampler: what they listen on, and what is told when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.listening import family, listeners
from tests.sampler import server, tiny

from espalier.api.exit_codes import FAULT
from espalier.core.volume import base_directory

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

# In the place of a pod's address: nobody listens here who was not told the name of this host.
OF_THE_POD = "127.0.0.2"
LOOPBACK = "127.0.0.1"
# A start takes 20 s on a machine that does nothing else.
PATIENCE_SECONDS = 400


@dataclass(frozen=True)
class Volume:
    """Where it is, the digest of its base, and the name of an adapter on it."""

    path: Path
    base: str
    adapter: str

    @property
    def files(self) -> list[Path]:
        """Of the base."""
        return sorted(base_directory(self.path, self.base).iterdir())


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    model = tiny.make_model(tmp_path_factory.mktemp("model"))
    path = tmp_path_factory.mktemp("weights")
    base = tiny.commit_base(path, model)
    adapter = tiny.commit_adapter(path, model, base, seed=1)
    return Volume(path, base, f"tiny@{adapter[7:19]}")


@pytest.fixture(scope="module")
def rollout(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Rollout]:
    """A server on a host that is called as a kubelet calls a container: its name is the pod's."""
    hosts = tmp_path_factory.mktemp("etc") / "hosts"
    hosts.write_text(f"{LOOPBACK} localhost\n{OF_THE_POD} arith-rollout-0\n")
    named = f'hostname arith-rollout-0 && mount --bind {hosts} /etc/hosts && exec "$@"'
    within = ("unshare", "--user", "--map-root-user", "--uts", "--mount", "sh", "-c", named, "sh")
    # Else it ends within 5 s of its engine's death.
    stays = {"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}
    process = server.start(volume.path, volume.base, within=within, environment=stays)
    try:
        server.wait_healthy(process)
        assert process.serve(volume.adapter).status_code == 200
        assert process.complete("base", "1", max_tokens=1).status_code == 200
        yield process
    finally:
        process.stop()


def overwrite(file: Path, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.write(content)


def test_a_sampler_does_not_serve_a_base_that_was_written_while_it_was_loaded(
    volume: Volume, tmp_path: Path
) -> None:
    """What vLLM has read in between nobody can say. Of full weights, which are looked at anew."""
    left = tmp_path / "termination-log"
    left.touch()
    process = server.start(
        volume.path,
        volume.base,
        adapter_type="Full",
        environment={"ESPALIER_TERMINATION_LOG": str(left)},
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    # vLLM writes it before it begins to load, and we have hashed the base before that.
    while "non-default args" not in process.log.read_text():
        assert process.process.poll() is None
        assert time.monotonic() < deadline, "it does not begin to load"
        time.sleep(0.05)
    (weights,) = (file for file in volume.files if file.name == "model.safetensors")
    before = weights.read_bytes()
    # Not made shorter for a moment: vLLM may have mapped it.
    overwrite(weights, before[:-4] + bytes(4))
    assert process.process.wait(PATIENCE_SECONDS) == FAULT
    overwrite(weights, before)
    problem = json.loads(left.read_text())
    assert problem["reason"] == "FilesChanged"
    assert problem["detail"].startswith("model.safetensors of sha256-")
    with pytest.raises(httpx.ConnectError):
        process.get("/healthz")


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


def greedy(rollout: server.Rollout) -> tuple[str, str]:
    """What the base completes, and answers in a chat."""
    plain = rollout.complete("base", "the quick", max_tokens=16, temperature=0)
    asked = [{"role": "user", "content": "What is 1 + 2?"}]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    chat = rollout.chat("base", asked, max_tokens=16, temperature=0, response_format=schema)
    return plain.json()["choices"][0]["text"], chat.json()["choices"][0]["message"]["content"]


def test_what_is_written_to_the_files_of_the_base_later_changes_no_answer(
    rollout: server.Rollout, volume: Volume
) -> None:
    """Nothing of them is read or mapped any more, also not for what is asked for the first time."""
    plain = rollout.complete("base", "the quick", max_tokens=16, temperature=0).json()
    before = {file: file.read_bytes() for file in volume.files}
    for file, content in before.items():
        overwrite(file, bytes(len(content)))
    first = greedy(rollout)
    for file, content in before.items():
        overwrite(file, content)
    assert first[0] == plain["choices"][0]["text"]
    assert first == greedy(rollout)


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
