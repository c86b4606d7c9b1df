"""espalier checkpoint export: from a volume, and from a cluster through kubectl."""

from __future__ import annotations

import json
from pathlib import Path

from dev.apiserver import ApiServer
from tests.core.objects import model
from typer.testing import CliRunner

from espalier.cli.checkpoint_export import export_pod
from espalier.cli.main import app


def calls(pod: Path) -> list[list[str]]:
    return [json.loads(line) for line in (pod / "calls").read_text().splitlines()]


def export(*arguments: object) -> tuple[int, str]:
    given = ["-n", "ns", "checkpoint", "export", *map(str, arguments)]
    done = CliRunner().invoke(app, given)
    return done.exit_code, done.output


def test_an_export_from_the_cluster_runs_beside_the_volume_and_arrives_here(
    pod: Path, tmp_path: Path
) -> None:
    code, output = export("arith-000001", "--output", tmp_path / "out", "--merged")
    assert code == 0, output
    told = json.loads((tmp_path / "out" / "told.json").read_text())
    checkpoint = json.loads((pod / "checkpoints.espalier.dev.json").read_text())
    assert told[3] == checkpoint["spec"]["digest"]
    assert {"--merged", "--dtype", "--base-name", "owner/name"} <= set(told)
    created = json.loads((pod / "created.json").read_text())
    assert created["spec"]["containers"][0]["image"] == "registry.example/trainer:1"
    assert calls(pod)[-1][2:] == ["delete", "pod", created["metadata"]["name"], "--wait=false"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp-")] == []


def test_a_failed_export_says_why_leaves_nothing_here_and_no_pod_there(
    pod: Path, tmp_path: Path
) -> None:
    (pod / "broken").touch()
    code, output = export("arith-000001", "--output", tmp_path / "out")
    assert (code, "restore the volume" in output) == (1, True)
    assert not (tmp_path / "out").exists()
    assert "delete" in calls(pod)[-1]


def test_an_output_that_exists_needs_force(pod: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    code, output = export("arith-000001", "--output", tmp_path / "out")
    assert (code, "--force" in output) == (1, True)
    assert (tmp_path / "out" / "mine").exists()
    assert export("arith-000001", "--output", tmp_path / "out", "--force")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["told.json"]


def test_an_export_from_a_directory_says_what_is_wrong(tmp_path: Path) -> None:
    code, output = export("a-000001", "--volume", tmp_path, "--output", tmp_path / "out")
    assert (code, "no checkpoint of the name a-000001" in output) == (1, True)


def test_the_export_pod_is_accepted_by_a_restricted_namespace(
    apiserver: ApiServer, namespace: str
) -> None:
    trainer = {
        "containers": [{"image": "registry.example/trainer:1"}],
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "imagePullSecrets": [{"name": "team"}],
    }
    body = export_pod(model(), trainer, "m-export-1")
    # User, groups and secrets are those of the installation's own pods.
    assert body["spec"]["securityContext"] == trainer["securityContext"]
    assert body["spec"]["imagePullSecrets"] == [{"name": "team"}]
    assert body["spec"]["containers"][0]["image"] == "registry.example/trainer:1"
    mounts = {m["name"]: m for m in body["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["weights"]["readOnly"] is True
    apiserver.kubectl(
        "apply", "-n", namespace, "--dry-run=server", "-f", "-", stdin=json.dumps(body)
    )
