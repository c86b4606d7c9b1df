"""What a pod's command and environment become on this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.kube.children import BASE, SETTINGS, model_of, run_of

from espalier import identity
from espalier.core.manifests.runner import runner_job
from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.trainer import trainer_statefulset
from espalier.local.layout import Layout, MappingError
from espalier.local.pod_process import plan
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


def test_a_users_image_beside_the_runner_is_refused_by_name(tmp_path: Path) -> None:
    python = {"image": "registry.example/game:1", "tasks": "game:tasks", "rollout": "game:play"}
    job = runner_job(run_of(taskset={"seed": 1, "python": python}), model_of(), SETTINGS)
    spec = job["spec"]["template"]["spec"]
    layout = Layout(tmp_path, images={})
    with pytest.raises(MappingError, match=r"registry\.example/game:1 .* use a cluster"):
        plan("r-0", "runner", spec, uid="u", address="127.9.9.9", layout=layout, config={})
