"""A directory of manifests, as ``espalier dev`` takes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.kube.children import SETTINGS, model_of, run_of

from espalier.core.manifests.runner import runner_job
from espalier.local.layout import Layout, MappingError, StartError
from espalier.local.manifests import ManifestError, fingerprint, read
from espalier.local.pod_process import plan
from espalier.runner.user_modules import mounted_modules

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = """
apiVersion: espalier.dev/v1alpha1
kind: CheckpointHead
metadata: {name: arith}
spec: {modelRef: {name: arith}, mode: Track}
"""

HERE = {"uid": "uid-1", "address": "127.9.9.9"}


def test_an_example_for_the_cluster_is_taken_as_it_is() -> None:
    found = read(EXAMPLES / "arithmetic", {})
    named = {f"{body['kind']} {body['metadata']['name']}" for body in found.objects}
    assert named == {
        "TrainableModel arith",
        "CheckpointHead arith",
        "ConfigMap sums",
        "TrainingRun arith-20",
    }
    assert {body["metadata"]["namespace"] for body in found.objects} == {"default"}
    assert "PersistentVolumeClaim espalier-weights" in found.ignored


def test_without_a_kustomization_every_yaml_counts(tmp_path: Path) -> None:
    (tmp_path / "head.yaml").write_text(HEAD)
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert [body["kind"] for body in read(tmp_path, {}).objects] == ["CheckpointHead"]


def test_names_that_kubectl_and_kustomize_take_are_read(tmp_path: Path) -> None:
    (tmp_path / "head.yml").write_text(HEAD)
    (tmp_path / "other.yaml").write_text(HEAD.replace("name: arith}\nspec", "name: other}\nspec"))
    assert len(read(tmp_path, {}).objects) == 2
    for name in ("kustomization.yml", "Kustomization"):
        kustomization = tmp_path / name
        before = fingerprint(tmp_path)
        kustomization.write_text("resources: [head.yml]")
        assert fingerprint(tmp_path) != before
        (only,) = read(tmp_path, {}).objects
        assert only["metadata"]["name"] == "arith"
        kustomization.unlink()


def test_an_edit_shows(tmp_path: Path) -> None:
    empty = fingerprint(tmp_path)
    (tmp_path / "head.yaml").write_text(HEAD)
    written = fingerprint(tmp_path)
    assert written != empty
    assert fingerprint(tmp_path) == written


def test_an_older_file_that_takes_the_place_of_a_newer_one_is_an_edit(tmp_path: Path) -> None:
    older = tmp_path / "kept.txt"
    older.write_text(HEAD)
    os.utime(older, (1, 1))
    (tmp_path / "head.yaml").write_text(HEAD)
    before = fingerprint(tmp_path)
    older.replace(tmp_path / "head.yaml")
    assert fingerprint(tmp_path) != before


def test_a_file_that_only_the_kustomization_names_is_followed_too(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [heads/head.yml]")
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "head.yml").write_text(HEAD)
    before = fingerprint(tmp_path)
    (tmp_path / "heads" / "head.yml").write_text(HEAD.replace("Track", "Pin"))
    assert fingerprint(tmp_path) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD.replace("Track", "Follow"), r"CheckpointHead arith: spec\.mode: Input should be"),
        (HEAD.replace("modelRef: {name: arith}, ", ""), r"spec\.modelRef: Field required"),
        (HEAD.replace("modelRef", "model"), r"spec\.model: field not declared in schema"),
        (HEAD.replace("v1alpha1", "v9"), "apiVersion must be espalier.dev/v1alpha1"),
        ("kind: [", "is not YAML"),
        ("spec: {}", "has no kind or no metadata.name"),
        ("kind: CheckpointHead\nmetadata: [arith]", "has no kind or no metadata.name"),
        (HEAD.replace("{name: arith}, mode", "{name: 1.5}, mode"), r'write it quoted, "1\.5"'),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}", "declares no TrainableModel"),
    ],
)
def test_what_no_api_server_would_take_is_refused_by_file_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "all.yaml").write_text(text)
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, {})


def test_a_kustomization_that_lists_more_than_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [../base]")
    with pytest.raises(ManifestError, match="only files are read here"):
        read(tmp_path, {})
    (tmp_path / "head.yaml").write_text(HEAD)
    (tmp_path / "kustomization.yaml").write_text("resources: [head.yaml]\nnamePrefix: my-")
    with pytest.raises(ManifestError, match="namePrefix: only resources are read here"):
        read(tmp_path, {})
    with pytest.raises(ManifestError, match="is not a directory"):
        read(tmp_path / "nowhere", {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be one document with resources"),
        ("# later", "must be one document with resources"),
        ("[head.yaml]", "must be one document with resources"),
        ("resources: [head.yaml]\n---\nresources: [head.yaml]", "must be one document"),
        ("kind: Kustomization", "resources: must be a list of files"),
        ("resources: []", "resources: must be a list of files"),
        ("resources: head.yaml", "resources: must be a list of files"),
    ],
)
def test_a_kustomization_that_lists_nothing_is_refused_with_the_remedy(
    tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "head.yaml").write_text(HEAD)
    (tmp_path / "kustomization.yaml").write_text(text)
    with pytest.raises(ManifestError, match=rf"kustomization.yaml: {problem}.*: list the manif"):
        read(tmp_path, {})


def test_a_file_of_other_bytes_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "head.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"head.yaml is not YAML"):
        read(tmp_path, {})


def test_paths_of_the_pod_become_paths_of_this_machine(tmp_path: Path) -> None:
    layout = Layout(tmp_path, {"model:1": tmp_path})
    weights = {"name": "weights", "persistentVolumeClaim": {"claimName": "disk"}}
    tasks = {"name": "tasks", "configMap": {"name": "sums"}}
    spec = {
        "volumes": [weights, tasks, {"name": "source", "emptyDir": {}}],
        "initContainers": [
            {
                "image": "model:1",
                "command": ["cp", "-rL", "/models/.", "/source/"],
                "volumeMounts": [{"name": "source", "mountPath": "/source"}],
            }
        ],
        "containers": [
            {
                "name": "importer",
                "command": ["python", "-m", "espalier.trainer.jobs.importer"],
                "args": ["--directory", "/source"],
                "env": [
                    {"name": "ESPALIER_VOLUME", "value": "/weights"},
                    {"name": "OTHER", "value": "/weightsandmore"},
                ],
                "volumeMounts": [
                    {"name": "weights", "mountPath": "/weights"},
                    {"name": "tasks", "mountPath": "/tasks"},
                ],
            }
        ],
    }
    config = {"sums": {"tasks.jsonl": "{}"}}
    planned = plan("p", "importer", spec, **HERE, layout=layout, config=config)
    assert planned.environment["ESPALIER_VOLUME"] == str(tmp_path / "volumes" / "disk")
    assert planned.environment["OTHER"] == "/weightsandmore"
    source = tmp_path / "pods" / "p" / "source"
    assert planned.command[-2:] == ("--directory", str(source))
    assert planned.copies == ((tmp_path, source),)
    assert (tmp_path / "pods" / "p" / "tasks" / "tasks.jsonl").read_text() == "{}"

    unknown = Layout(tmp_path, {})
    with pytest.raises(MappingError, match="give --image model:1=DIRECTORY"):
        plan("p", "importer", spec, **HERE, layout=unknown, config=config)
    with pytest.raises(MappingError, match="ConfigMap sums is in no manifest"):
        plan("p", "importer", spec, **HERE, layout=layout, config={})


def test_modules_of_rewards_are_where_the_runner_looks_for_them(tmp_path: Path) -> None:
    python = {"configMapRef": {"name": "style", "key": "a.py"}}
    run = run_of(rewards=[{"name": "style", "python": python}])
    spec = runner_job(run, model_of(), SETTINGS)["spec"]["template"]["spec"]
    config = {"tasks": {"tasks.jsonl": "{}"}, "style": {"a.py": "x = 1", "b.py": "x = 2"}}
    layout = Layout(tmp_path, {})
    found = plan("p", "runner", spec, **HERE, layout=layout, config=config)
    directory = Path(found.environment["ESPALIER_MODULES_DIRECTORY"])
    assert mounted_modules(directory)("style", "a.py") == "x = 1"
    assert not (directory / "style" / "b.py").exists()
    assert Path(found.environment["ESPALIER_TOKEN_FILE"]).read_text() == layout.token()
    config["style"].pop("a.py")
    with pytest.raises(MappingError, match=r"style with key a\.py is in no manifest: add it"):
        plan("p", "runner", spec, **HERE, layout=layout, config=config)


def test_temporary_files_are_where_a_sockets_path_is_short_enough(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    mounted = {"name": "rollout", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    spec = {"volumes": [{"name": "tmp", "emptyDir": {}}], "containers": [mounted]}
    place = Layout(deep, {}).mounts("pod", spec, {})["/tmp"]
    assert len(str(place)) < 60
    assert place.stat().st_mode & 0o777 == 0o700
    (place / "left").touch()
    Layout(deep, {}).forget_temporary("pod")
    assert not place.exists()
    place.symlink_to(tmp_path)
    with pytest.raises(MappingError, match=r"is another user's: remove it, or set TMPDIR"):
        Layout(deep, {}).mounts("pod", spec, {})
    place.unlink()
    assert Layout(deep, {}).mounts("other", spec, {})["/tmp"] != place


def test_secrets_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", {})
    assert layout.token() == Layout(tmp_path / "state", {}).token()
    assert (tmp_path / "state" / "token").stat().st_mode & 0o777 == 0o600


def test_a_state_has_one_espalier_dev_and_tells_whether_it_has(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", {})
    assert not layout.in_use()
    with layout.claimed():
        assert layout.in_use()
        with (
            pytest.raises(StartError, match=r"another espalier dev works in .*give --state"),
            Layout(tmp_path / "state", {}).claimed(),
        ):
            pass
    assert not layout.in_use()
