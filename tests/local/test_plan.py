"""What a pod's command and environment become on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from espalier.local.layout import Layout, MappingError
from espalier.local.process import plan


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
