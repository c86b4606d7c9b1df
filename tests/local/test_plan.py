"""What a pod's command and environment become on this machine."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from tests.kube.children import BASE, SETTINGS, model_of, run_of
from tests.runner.standin import StandIn

from espalier import identity
from espalier.core.manifests.runner import runner_job
from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.trainer import trainer_statefulset
from espalier.local.layout import Layout, MappingError
from espalier.local.pod_process import plan
from espalier.local.running import Running
from espalier.sampler.settings import SamplerSettings
from espalier.trainer.settings import read_settings as read_trainer


def test_paths_of_the_pod_are_moved_and_the_interpreter_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/tmp/clone/.venv/bin/python")
    field = {"apiVersion": "v1", "fieldPath": "metadata.uid"}
    own = {"name": "ESPALIER_POD_UID", "valueFrom": {"fieldRef": field}}
    container = {
        "command": ["python", "-m", "espalier.trainer", "--scratch", "/tmp/scratch"],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "OTHER", "value": "/tmpfile"}, own],
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }
    spec = {"containers": [container], "volumes": [{"name": "scratch", "emptyDir": {}}]}
    layout = Layout(tmp_path, images={})
    planned = plan(
        "p-0", "rollout", spec, uid="uid-1", address="127.9.9.9", layout=layout, config={}
    )
    here = planned.environment["HOME"]
    assert planned.command[0] == "/tmp/clone/.venv/bin/python"
    assert planned.command[-1] == f"{here}/scratch"
    assert planned.environment["OTHER"] == "/tmpfile"
    assert planned.environment["ESPALIER_POD_UID"] == "uid-1"


def test_the_operators_manifests_make_servers_that_take_tokens_for_their_own_pod(
    tmp_path: Path,
) -> None:
    keys = identity.PublicKeys(("operator's PEM",), ("gateway's PEM",))
    settings = replace(SETTINGS, public_keys=keys.text())
    made = {
        "trainer": trainer_statefulset(model_of(), settings, base=BASE, replicas=1),
        "rollout": rollout_deployment(model_of(), settings, base=BASE),
    }
    found = {}
    for role, child in made.items():
        spec = child["spec"]["template"]["spec"]
        layout = Layout(tmp_path, images={})
        planned = plan(
            f"{role}-0", role, spec, uid=f"u-{role}", address="127.9.9.9", layout=layout, config={}
        )
        read = read_trainer if role == "trainer" else SamplerSettings.read
        told = read(planned.environment)
        found[role] = told.audience
        assert told.public_keys == keys
    assert found == {
        "trainer": "default/arith/trainer/u-trainer",
        "rollout": "default/arith/rollout/u-rollout",
    }


SECRET = {
    "containers": [
        {"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "t"}}}]}
    ]
}


def test_a_secret_is_what_this_machines_environment_holds(tmp_path: Path) -> None:
    layout = Layout(tmp_path, images={}, secrets={("hub", "t"): "hf_x"})
    planned = plan("p-0", "importer", SECRET, uid="", address="127.9.9.9", layout=layout, config={})
    assert planned.environment["TOKEN"] == "hf_x"


def test_a_secret_that_was_not_given_is_named_with_the_option(tmp_path: Path) -> None:
    layout = Layout(tmp_path, images={})
    with pytest.raises(MappingError, match="--secret hub/t=VARIABLE"):
        plan("p-0", "importer", SECRET, uid="", address="127.9.9.9", layout=layout, config={})


PYTHON = {"image": "registry.example/game:1", "tasks": "game:tasks", "rollout": "game:play"}
GAME = """
import os

def tasks(seed, size):
    return [{"id": str(number), "prompt": f"{number}="} for number in range(size)]

async def play(task, session):
    # The token is the runner's, and this process knows of no Secret.
    assert "hf_x" not in os.environ.values(), "it was told a Secret"
    turn = await session.say(task["prompt"])
    return float(turn.text == task["prompt"][0])
"""


def test_a_users_image_that_is_not_here_is_refused_with_the_option(tmp_path: Path) -> None:
    job = runner_job(run_of(taskset={"seed": 1, "python": PYTHON}), model_of(), SETTINGS)
    spec = job["spec"]["template"]["spec"]
    layout = Layout(tmp_path, images={})
    with pytest.raises(MappingError, match=r"--image registry\.example/game:1=DIRECTORY with your"):
        plan("r-0", "runner", spec, uid="u", address="127.9.9.9", layout=layout, config={})


def test_an_evaluation_has_its_socket_where_the_runner_looks_also_beside_generated_tasks(
    tmp_path: Path,
) -> None:
    held = {"name": "held", "taskset": {"seed": 2, "python": PYTHON}}
    generated = {"seed": 1, "reasoningGym": {"dataset": "chain_sum"}}
    job = runner_job(run_of(taskset=generated, evaluation=[held]), model_of(), SETTINGS)
    spec = job["spec"]["template"]["spec"]
    layout = Layout(tmp_path, images={PYTHON["image"]: tmp_path})
    planned = plan("r-0", "runner", spec, uid="u", address="127.9.9.9", layout=layout, config={})
    own = Path(planned.environment["ESPALIER_HOST_SOCKET"])
    (host,) = planned.companions
    assert host.command[-1] == str(own.parent.with_name(f"{own.parent.name}-held") / own.name)
    assert Path(host.command[-1]).parent.is_dir()


async def test_a_users_image_plays_beside_the_runner_in_its_directory_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner's own manifest, as processes: runner, host, and a stand-in of the gateway."""
    monkeypatch.setenv("HUB_TOKEN", "hf_x")
    modules = tmp_path / "game"
    modules.mkdir()
    (modules / "game.py").write_text(GAME)
    taskset = {"seed": 1, "size": 8, "python": PYTHON}
    gateway = StandIn(taskset=taskset, steps=2)
    gateway.ends = True
    gateway.answer = lambda prompt, index: prompt[0] if len(gateway.samples) % 2 else "none"
    async with TestServer(gateway.app()) as server:
        settings = replace(SETTINGS, gateway_url=str(server.make_url("/")))
        job = runner_job(run_of(taskset=taskset), model_of(), settings)
        images = {PYTHON["image"]: modules}
        layout = Layout(tmp_path / "state", images, {("hub", "token"): "hf_x"})
        planned = plan(
            "r-0",
            "runner",
            job["spec"]["template"]["spec"],
            uid="u",
            address="127.9.9.9",
            layout=layout,
            config={},
        )
        # The stand-in's run has another name.
        planned.environment["ESPALIER_RUN"] = "default/run"
        planned.environment["ESPALIER_MODEL"] = "tiny"
        running = await Running.start(planned, layout.log("r-0"))
        try:
            async with asyncio.timeout(120):
                while running.code is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        finally:
            await running.stop()
    said = layout.log("r-0").read_text()
    assert running.code == 0, said
    assert gateway.kinds() == ["forward-backward", "optim-step"] * 2, said
    rewards = {one["reward"] for one in gateway.bodies("forward-backward")[0]["inputs"]}
    assert rewards == {0.0, 1.0}
