"""The cookbooks as Jobs: what ``apply -k examples/cookbook-jobs/NAME`` brings is accepted."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.apiserver import ApiServer

ROOT = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(p.stem for p in (ROOT / "cookbooks").glob("*.py") if "__main__" in p.read_text())


def built(server: ApiServer, script: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text_of(server, script)))


@cache
def text_of(server: ApiServer, script: str) -> str:
    return server.kubectl("kustomize", str(ROOT / "cookbook-jobs" / script))


def the(kind: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [body for body in objects if body["kind"] == kind]
    return found


def test_every_script_has_a_job() -> None:
    assert sorted(p.name for p in (ROOT / "cookbook-jobs").iterdir()) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_api_server_takes_every_object(
    apiserver: ApiServer, namespace: str, script: str
) -> None:
    text = server_side(apiserver, namespace, text_of(apiserver, script))
    assert f"job.batch/cookbook-{script.replace('_', '-')} serverside-applied" in text
    assert text.count("server dry run") == 9


def server_side(server: ApiServer, namespace: str, text: str) -> str:
    arguments = ("-n", namespace, "apply", "--server-side", "--dry-run=server", "-f", "-")
    return server.kubectl(*arguments, stdin=text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_runs_its_own_script_from_the_files_of_the_directory(
    apiserver: ApiServer, script: str
) -> None:
    objects = built(apiserver, script)
    files, pod = the("ConfigMap", objects), the("Job", objects)["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == [f"/cookbooks/{script}.py"]
    assert {"name": "cookbooks", "configMap": {"name": files["metadata"]["name"]}} in pod["volumes"]
    assert files["data"] == {p.name: p.read_text() for p in (ROOT / "cookbooks").glob("*.py")}


def test_its_pod_passes_the_restricted_profile(apiserver: ApiServer, namespace: str) -> None:
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    apiserver.kubectl("label", "namespace", namespace, enforce)
    objects = built(apiserver, SCRIPTS[0])
    apiserver.kubectl("-n", namespace, "create", "serviceaccount", "cookbook")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "cookbook"},
        "spec": the("Job", objects)["spec"]["template"]["spec"],
    }
    assert "pod/cookbook serverside-applied" in server_side(apiserver, namespace, json.dumps(pod))


def test_its_account_may_sample_train_and_move_the_head_and_no_more(
    apiserver: ApiServer, namespace: str
) -> None:
    role = the("Role", built(apiserver, SCRIPTS[0]))
    allowed = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == {
        ("trainablemodels", "get"),
        ("trainablemodels/sample", "create"),
        ("trainingruns", "get"),
        ("trainingruns", "update"),
        ("checkpointheads", "get"),
        ("checkpointheads", "update"),
    }
