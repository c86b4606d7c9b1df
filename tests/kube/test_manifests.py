"""What the children are given."""

from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.api.cases import TEMPLATE
from tests.core.objects import checkpoint
from tests.kube.children import (
    BASE,
    HUB_BASE,
    IMAGE_BASE,
    REVISION,
    SETTINGS,
    VOLUME_BASE,
    children_of,
    container_of,
    environment,
    model_of,
    pod_of,
    run_of,
    seen,
)

from espalier.api.podtemplate import RESERVED
from espalier.core.manifests.collector import collector_job
from espalier.core.manifests.importer import importer_job
from espalier.core.manifests.installation import COPY_SIZE, ChildSettings, HubSettings
from espalier.core.manifests.intent import is_current
from espalier.core.manifests.queue import after_refusal
from espalier.core.manifests.runner import pod_fingerprint, runner_job
from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.trainer import trainer_statefulset
from espalier.sampler import flags

Body = dict[str, Any]
MODEL_ENV = {
    "ESPALIER_MODEL": "arith",
    "ESPALIER_NAMESPACE": "default",
    "ESPALIER_POD_UID": "<metadata.uid>",
    "ESPALIER_VOLUME": "/weights",
    "ESPALIER_BASE": BASE,
    "ESPALIER_PUBLIC_KEYS": SETTINGS.public_keys,
}


def workloads() -> list[Body]:
    return [c for c in children_of(model_of(), run_of()) if c["kind"] != "Service"]


def test_names_derive_from_model_and_run() -> None:
    children = children_of(model_of(), run_of())
    assert [(c["kind"], c["metadata"]["name"]) for c in children] == [
        ("Service", "arith-trainer"),
        ("StatefulSet", "arith-trainer"),
        ("Service", "arith-rollout"),
        ("Deployment", "arith-rollout"),
        ("Job", "arith-import"),
        ("Job", "arith-20-runner"),
    ]


def test_children_are_owned_by_the_model_and_the_runner_by_its_run() -> None:
    owners = [
        (reference["kind"], reference["uid"], reference["controller"])
        for child in children_of(model_of(), run_of())
        for reference in child["metadata"]["ownerReferences"]
    ]
    assert owners == 5 * [("TrainableModel", "model-uid", True)] + [
        ("TrainingRun", "run-uid", True)
    ]


def test_pods_carry_the_labels_that_they_are_found_by() -> None:
    labels = [child["spec"]["template"]["metadata"]["labels"] for child in workloads()]
    assert [entry["espalier.dev/role"] for entry in labels] == [
        "trainer",
        "rollout",
        "importer",
        "runner",
    ]
    assert {entry["espalier.dev/model"] for entry in labels} == {"arith"}
    assert labels[-1]["espalier.dev/run"] == "arith-20"


def test_the_trainer_is_told_its_adapter_and_precision() -> None:
    model = model_of(trainer={"dtype": "bfloat16"}, adapter={"rank": 8})
    env = environment(trainer_statefulset(model, SETTINGS, base=BASE, replicas=1))
    assert env.items() >= {**MODEL_ENV, "ESPALIER_DTYPE": "bfloat16"}.items()
    assert json.loads(env["ESPALIER_ADAPTER"]) == model.spec.adapter.wire()


def test_a_trainer_of_several_ranks_is_run_by_the_launcher() -> None:
    def command(**trainer: int) -> Any:
        child = trainer_statefulset(model_of(trainer=trainer), SETTINGS, base=BASE, replicas=1)
        return pod_of(child)["containers"][0].get("command")

    assert command() is None
    assert command(ranks=4) == [
        *("python", "-m", "espalier.trainer.ranks"),
        *("--ranks", "4"),
    ]


@pytest.mark.parametrize(("own", "served"), [({}, "bfloat16"), ({"dtype": "float32"}, "float32")])
def test_rollouts_serve_the_trainers_precision_unless_told_otherwise(
    own: Body, served: str
) -> None:
    model = model_of(trainer={"dtype": "bfloat16"}, rollout={"maxModelTokens": 512, **own})
    env = environment(rollout_deployment(model, SETTINGS, base=BASE))
    expected = {
        **MODEL_ENV,
        "ESPALIER_DTYPE": served,
        "ESPALIER_MAX_MODEL_TOKENS": "512",
        "ESPALIER_MAX_ADAPTERS": "4",
        "ESPALIER_MAX_LORA_RANK": "16",
    }
    assert env.items() >= expected.items()


def test_a_rollout_is_told_the_parsers_that_the_spec_chooses() -> None:
    """Auto is left out, so that pods of before these variables are left running."""
    chosen = {"toolCallParser": "hermes", "reasoningParser": "None"}
    env = environment(rollout_deployment(model_of(rollout=chosen), SETTINGS, base=BASE))
    assert env["ESPALIER_TOOL_CALL_PARSER"] == "hermes"
    assert env["ESPALIER_REASONING_PARSER"] == "None"
    unset = environment(rollout_deployment(model_of(), SETTINGS, base=BASE))
    assert not {"ESPALIER_TOOL_CALL_PARSER", "ESPALIER_REASONING_PARSER"} & unset.keys()


BASE_FOLDER = f"bases/{BASE.replace(':', '-')}"
IMPORTS, CHECKPOINTS, LOG = "bases/.imports/arith", "checkpoints/arith", "models/arith"


def parts(of: Body) -> dict[str, bool]:
    """The folders of the claim that a container sees, and whether it writes them."""
    found = seen(of)
    assert all(path == f"/weights/{folder}" for path, (folder, _) in found.items() if folder)
    return dict(found.values())


def test_each_container_sees_its_own_part_of_the_claim() -> None:
    model, whole = model_of(), {"": True}
    trainer = trainer_statefulset(model, SETTINGS, base=BASE, replicas=1)
    assert parts(container_of(trainer)) == {BASE_FOLDER: False, CHECKPOINTS: True, LOG: True}
    rollout = rollout_deployment(model, SETTINGS, base=BASE)
    assert parts(container_of(rollout)) == {BASE_FOLDER: False, CHECKPOINTS: False}
    job = importer_job(model, SETTINGS)
    assert parts(container_of(job, "importer")) == {IMPORTS: True}
    assert parts(container_of(job, "place")) == {"bases": True}
    assert parts(container_of(job, "copy")) == {}
    for child in (trainer, rollout, job):
        assert parts(container_of(child, "folders")) == whole
        assert pod_of(child)["initContainers"][0]["name"] == "folders"


@pytest.mark.parametrize("orphaned", [False, True])
def test_a_collector_sees_the_models_checkpoints_and_writes_its_log_only_to_remove_it(
    *, orphaned: bool
) -> None:
    job = collector_job([checkpoint()], "claim", SETTINGS, orphaned=orphaned)
    assert parts(container_of(job)) == {"checkpoints/m": True, "models/m": orphaned}
    assert parts(container_of(job, "folders")) == {"": True}
    assert environment(job, "folders").items() >= {"ESPALIER_WRITES": "true"}.items()
    assert {"name": "weights", "persistentVolumeClaim": {"claimName": "claim"}} in pod_of(job)[
        "volumes"
    ]


def test_what_puts_an_adapter_in_place_sees_its_models_checkpoints_too() -> None:
    source = {"base": HUB_BASE, "adapter": {"image": "registry.example/lora:1"}}
    job = importer_job(model_of(source=source), SETTINGS)
    assert parts(container_of(job, "importer")) == {IMPORTS: True}
    assert parts(container_of(job, "place")) == {"bases": True, CHECKPOINTS: True}


def test_what_puts_an_import_in_place_shares_nothing_that_strangers_write_and_gets_no_token() -> (
    None
):
    source = {"base": PRIVATE, "adapter": {"image": "registry.example/lora:1"}}
    job = importer_job(model_of(source=source), SETTINGS)
    mounted = {
        name: {m["name"] for m in container_of(job, name)["volumeMounts"]} - {"weights"}
        for name in ("copy-adapter", "importer", "place")
    }
    # Python runs what lies below its home directory, /tmp.
    assert mounted["place"].isdisjoint(mounted["importer"] | mounted["copy-adapter"])
    assert mounted["importer"] & mounted["copy-adapter"] == {"adapter"}
    place = container_of(job, "place")
    assert not [entry for entry in place["env"] if "valueFrom" in entry]
    assert place["args"] == container_of(job, "importer")["args"]


def test_no_pod_gets_a_token_but_the_runner_one_for_the_gateway() -> None:
    assert all(pod_of(child)["automountServiceAccountToken"] is False for child in workloads())
    tokens = {
        child["metadata"]["name"]: source["serviceAccountToken"]["audience"]
        for child in workloads()
        for volume in pod_of(child)["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
    }
    assert tokens == {"arith-20-runner": "espalier-gateway"}


def test_the_runner_finds_run_gateway_token_and_tasks() -> None:
    job = runner_job(run_of(), model_of(), SETTINGS)
    env = environment(job)
    assert env["ESPALIER_RUN"] == "default/arith-20"
    assert env["ESPALIER_GATEWAY_URL"] == SETTINGS.gateway_url
    mounts = {m["name"]: m["mountPath"] for m in pod_of(job)["containers"][0]["volumeMounts"]}
    assert env["ESPALIER_TOKEN_FILE"] == f"{mounts['token']}/token"
    assert mounts["tasks"] == "/etc/espalier/tasks"


@pytest.mark.parametrize(
    ("runner", "tries"), [(None, 20), ({}, 20), ({"backoffLimit": 0}, 0), ({"backoffLimit": 3}, 3)]
)
def test_a_runner_is_tried_as_often_as_its_run_says_and_evictions_do_not_count(
    runner: dict[str, int] | None, tries: int
) -> None:
    run = run_of(**({} if runner is None else {"runner": runner}))
    job = runner_job(run, model_of(), SETTINGS)
    assert job["spec"]["backoffLimit"] == tries
    evicted = {"type": "DisruptionTarget", "status": "True"}
    ignored = {"action": "Ignore", "onPodConditions": [evicted]}
    assert ignored in job["spec"]["podFailurePolicy"]["rules"]


def test_what_is_told_to_end_is_no_failure_of_a_job() -> None:
    # A queue that preempts a Job suspends it, and Kubernetes marks no pod of it as disrupted.
    for job in (runner_job(run_of(), model_of(), SETTINGS), importer_job(model_of(), SETTINGS)):
        for name in containers_of_ours(job):
            ends = {"containerName": name, "operator": "In", "values": [128 + signal.SIGTERM]}
            rules = job["spec"]["podFailurePolicy"]["rules"]
            assert {"action": "Ignore", "onExitCodes": ends} in rules


def containers_of_ours(job: Body) -> list[str]:
    """The names of the containers of its pod that run an image of ours to its end."""
    pod = pod_of(job)
    every = (*pod["containers"], *pod.get("initContainers", ()))
    (own,) = {container["image"] for container in pod["containers"]}
    return [container["name"] for container in every if container["image"] == own]


QUEUE = "kueue.x-k8s.io/queue-name"


def test_what_has_a_queue_name_waits_in_that_queue_even_where_nobody_manages_it() -> None:
    queued = {"template": {"queueName": "research"}}
    model = model_of(trainer=queued, rollout=queued, jobs=queued)
    for child in children_of(model, run_of(runner=queued)):
        if child["kind"] == "Service":
            continue
        # Of a StatefulSet Kueue would manage all pods as one.
        one_by_one = child["kind"] == "StatefulSet"
        assert (QUEUE in child["metadata"]["labels"]) is not one_by_one
        if child["kind"] == "Job":
            assert child["metadata"]["labels"][QUEUE] == "research"
            assert child["spec"]["suspend"] is True
            continue
        assert pod_of(child)["schedulingGates"] == [{"name": "kueue.x-k8s.io/admission"}]
        metadata = child["spec"]["template"]["metadata"]
        assert metadata["labels"][QUEUE] == "research"
        parent = metadata.get("annotations", {}).get("kueue.x-k8s.io/pod-suspending-parent")
        assert parent == ("pod" if one_by_one else None)
        # Another queue must not make other pods of it.
        assert QUEUE not in child["spec"]["selector"]["matchLabels"]


def test_without_a_queue_name_nothing_waits() -> None:
    for child in workloads():
        assert QUEUE not in child["metadata"]["labels"]
        assert "suspend" not in child["spec"]
        assert "schedulingGates" not in pod_of(child)


def test_the_time_in_a_queue_does_not_count_to_a_deployments_deadline() -> None:
    queued = {"template": {"queueName": "research"}}
    body = rollout_deployment(model_of(rollout=queued), SETTINGS, base=BASE)
    # By which Kubernetes means none.
    assert body["spec"]["progressDeadlineSeconds"] == 2**31 - 1


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (
            'admission webhook "vdeployment.kb.io" denied the request: metadata.labels[kueue.x-k8s'
            '.io/queue-name]: Invalid value: "b": field is immutable',
            "Replace",
        ),
        (
            'admission webhook "vstatefulset.kb.io" denied the request: spec.replicas: Forbidden: '
            "workload from previous scale-down is still being deleted",
            "Wait",
        ),
        ('admission webhook "vdeployment.kb.io" denied the request: bad name', "Raise"),
        ('admission webhook "policy.example.com" denied the request: is immutable', "Raise"),
        ("spec.selector: Invalid value: field is immutable", "Raise"),
    ],
)
def test_what_kueue_lets_nobody_change_is_made_anew(message: str, remedy: str) -> None:
    assert after_refusal(message) == remedy


def test_an_edit_of_how_often_it_is_tried_replaces_the_job_of_a_runner() -> None:
    of_none, of_three = run_of(runner={}), run_of(runner={"backoffLimit": 3})
    assert pod_fingerprint(of_none) != pod_fingerprint(of_three)


def test_tasks_of_a_claim_are_read_from_their_own_directory_alone() -> None:
    source = {"claimName": "data", "path": "gsm8k/main/train.jsonl"}
    run = run_of(taskset={"seed": 1, "persistentVolumeClaim": source})
    job = runner_job(run, model_of(), SETTINGS)
    (mount,) = [m for m in pod_of(job)["containers"][0]["volumeMounts"] if m["name"] == "tasks"]
    assert mount["subPath"] == "gsm8k/main"
    assert mount["readOnly"] is True
    assert environment(job)["ESPALIER_TASKS_MOUNTED"] == "claim/data/gsm8k/main"
    volume = {"name": "tasks", "persistentVolumeClaim": {"claimName": "data"}}
    assert volume in pod_of(job)["volumes"]


TRACKING: dict[str, Any] = {
    "wandb": {"apiKeySecretRef": {"name": "team.wandb", "key": "api-key"}},
    "mlflow": {
        **{"trackingURI": "http://mlflow:5000"},
        "tokenSecretRef": {"name": "mlflow", "key": "token"},
    },
    "tensorBoard": {"claimName": "boards"},
    "trackio": {"claimName": "tracks"},
}


def test_the_runner_gets_the_keys_of_its_trackers_by_reference() -> None:
    spec = runner_job(run_of(tracking=TRACKING), model_of(), SETTINGS)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"] == {
        **{"name": "team.wandb", "key": "api-key"}
    }
    assert env["MLFLOW_TRACKING_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "mlflow"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for place, claim in (("ESPALIER_BOARDS", "boards"), ("ESPALIER_TRACKIO", "tracks")):
        volume = volumes[mounts[env[place]["value"]]]
        assert volume["persistentVolumeClaim"] == {"claimName": claim}


def test_the_runner_is_made_anew_when_its_trackers_are_edited() -> None:
    bare = runner_job(run_of(), model_of(), SETTINGS)["spec"]["template"]["spec"]
    names = {entry["name"] for entry in bare["containers"][0]["env"]}
    assert {"WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"} & names == set()
    tracked = [{"wandb": {"mode": "Offline"}}, {"tensorBoard": {"claimName": "boards"}}]
    made = {pod_fingerprint(run_of(tracking=tracking)) for tracking in (None, *tracked)}
    assert len(made) == 3


def test_an_image_copies_its_tasks_to_where_the_runner_reads_them() -> None:
    source = {"reference": "registry.example/tasks:1", "path": "train.jsonl"}
    job = runner_job(run_of(taskset={"seed": 1, "image": source}), model_of(), SETTINGS)
    (copy,) = pod_of(job)["initContainers"]
    assert copy["image"] == "registry.example/tasks:1"
    assert copy["command"] == ["cp", "-rL", "/tasks/.", "/etc/espalier/tasks/"]
    mounts = {m["name"]: m["mountPath"] for m in pod_of(job)["containers"][0]["volumeMounts"]}
    assert mounts["tasks"] == "/etc/espalier/tasks"
    assert {"name": "tasks", "emptyDir": {"sizeLimit": COPY_SIZE}} in pod_of(job)["volumes"]


def test_no_pod_takes_a_nodes_disk_without_bound() -> None:
    settings = replace(SETTINGS, tmp_size="3Gi", copy_size="9Gi")
    tasks = {"seed": 1, "image": {"reference": "registry.example/tasks:1", "path": "train.jsonl"}}
    model, run = model_of(), run_of(taskset=tasks)
    for made in (
        trainer_statefulset(model, settings, base=BASE, replicas=1),
        rollout_deployment(model, settings, base=BASE),
        importer_job(model, settings),
        runner_job(run, model, settings),
        collector_job([checkpoint("arith-000001")], "weights", settings, orphaned=False),
    ):
        volumes = {
            one["name"]: one["emptyDir"] for one in pod_of(made)["volumes"] if "emptyDir" in one
        }
        assert all("sizeLimit" in volume for volume in volumes.values()), made["kind"]
        assert volumes["tmp"] == {"sizeLimit": "3Gi"}
        copies = [volumes[name] for name in ("source", "tasks") if name in volumes]
        assert copies == [{"sizeLimit": "9Gi"}] * len(copies)


def test_of_the_users_config_maps_the_runner_sees_the_modules_alone() -> None:
    names = (("style", "a.py"), ("curses", "b.py"), ("style", "a.py"))
    rewards = [
        {"name": f"r{n}", "python": {"configMapRef": {"name": name, "key": key}}}
        for n, (name, key) in enumerate(names)
    ]
    loss = {"name": "Custom", "customRef": {"name": "losses"}}
    run = run_of(rewards=[*rewards, {"name": "right", "exact": {}}], loss=loss)
    job = runner_job(run, model_of(), SETTINGS)
    env = environment(job)
    assert env["ESPALIER_MODULES_MOUNTED"] == "curses/b.py,losses/loss.py,style/a.py"
    mounts = pod_of(job)["containers"][0]["volumeMounts"]
    (mount,) = [one for one in mounts if one["name"] == "modules"]
    assert (mount["mountPath"], mount["readOnly"]) == (env["ESPALIER_MODULES_DIRECTORY"], True)
    (volume,) = [one for one in pod_of(job)["volumes"] if one["name"] == "modules"]
    assert volume["projected"]["sources"] == [
        {"configMap": {"name": name, "items": [{"key": key, "path": f"{name}/{key}"}]}}
        for name, key in (("curses", "b.py"), ("losses", "loss.py"), ("style", "a.py"))
    ]
    plain = runner_job(run_of(), model_of(), SETTINGS)
    assert "modules" not in {one["name"] for one in pod_of(plain)["volumes"]}


def test_a_runner_is_replaced_for_other_modules_and_for_nothing_else_of_a_reward() -> None:
    def fingerprint(name: str, weight: str = "1.0") -> str:
        python = {"configMapRef": {"name": name}}
        return pod_fingerprint(run_of(rewards=[{"name": "r", "weight": weight, "python": python}]))

    assert fingerprint("style") != fingerprint("curses")
    assert fingerprint("style") == fingerprint("style", weight="0.5")


PYTHON = {"image": "registry.example/game:1", "tasks": "game:tasks", "rollout": "game:play"}


def test_a_users_image_plays_beside_the_runner_and_shares_no_token_and_no_tmp_with_it() -> None:
    job = runner_job(run_of(taskset={"seed": 1, "python": PYTHON}), model_of(), SETTINGS)
    (runner,) = pod_of(job)["containers"]
    place, plays = pod_of(job)["initContainers"]
    assert (place["image"], plays["image"]) == (runner["image"], "registry.example/game:1")
    # A container that stays ends with the runner, and is started again when it ends before.
    assert plays["restartPolicy"] == "Always"
    assert "restartPolicy" not in place
    shared = names(runner) & names(plays)
    assert shared == {"host-socket"}
    assert "token" not in names(plays)
    script = next(m for m in plays["volumeMounts"] if m["name"] == "host-script")
    assert script["readOnly"] is True
    assert plays["securityContext"] == runner["securityContext"]
    assert set(variables(plays)) == {"HOME", "USER", "PYTHONHASHSEED", "PYTHONUNBUFFERED"}
    assert plays["command"][-1] == environment(job)["ESPALIER_HOST_SOCKET"]
    assert environment(job)["ESPALIER_TASKS_MOUNTED"] == "environment/registry.example/game:1"
    volumes = [volume["name"] for volume in pod_of(job)["volumes"]]
    assert len(volumes) == len(set(volumes))
    assert names(place) | names(plays) | names(runner) == set(volumes)


def names(container: Body) -> set[str]:
    return {mount["name"] for mount in container["volumeMounts"]}


def variables(container: Body) -> list[str]:
    return [variable["name"] for variable in container["env"]]


def test_another_image_of_the_users_is_another_pod() -> None:
    other = {**PYTHON, "image": "registry.example/game:2"}
    taskset = {"seed": 1, "python": PYTHON}
    first = pod_fingerprint(run_of(taskset=taskset))
    assert pod_fingerprint(run_of(taskset={**taskset, "python": other})) != first
    bounded = {**PYTHON, "resources": {"limits": {"memory": "1Gi"}}}
    assert pod_fingerprint(run_of(taskset={**taskset, "python": bounded})) != first
    job = runner_job(run_of(taskset={**taskset, "python": bounded}), model_of(), SETTINGS)
    _, plays = pod_of(job)["initContainers"]
    assert plays["resources"]["limits"] == {"memory": "1Gi"}
    longer = {**taskset, "python": {**PYTHON, "maxTurns": 5}}
    assert pod_fingerprint(run_of(taskset=longer)) == first
    # As before evaluations had images: a pod of then goes on.
    before = {"configMap": "", "environment": [PYTHON["image"], {}], "runner": {}}
    text = json.dumps(before, sort_keys=True).encode()
    assert first == hashlib.sha256(text).hexdigest()[:16]


def test_an_evaluation_that_an_image_plays_has_a_container_and_a_socket_of_its_own() -> None:
    held = {"name": "held", "taskset": {"seed": 2, "python": {**PYTHON, "image": "held:1"}}}
    own = {"seed": 1, "python": PYTHON}
    run = run_of(taskset=own, evaluation=[held])
    (runner,) = pod_of(runner_job(run, model_of(), SETTINGS))["containers"]
    _place, plays, other = pod_of(runner_job(run, model_of(), SETTINGS))["initContainers"]
    assert [plays["name"], other["name"], other["image"]] == [
        *("environment", "environment-held", "held:1"),
    ]
    assert names(runner) & names(other) == {"host-socket-held"}
    assert names(plays) & names(other) == {"host-script"}
    mounts = {mount["name"]: mount["mountPath"] for mount in runner["volumeMounts"]}
    assert other["command"][-1] == f"{mounts['host-socket-held']}/host.sock"
    assert mounts["host-socket-held"] == f"{mounts['host-socket']}-held"
    assert pod_fingerprint(run) != pod_fingerprint(run_of(taskset=own))


def test_a_run_with_generated_tasks_mounts_none() -> None:
    run = run_of(taskset={"seed": 1, "reasoningGym": {"dataset": "chain_sum"}})
    job = runner_job(run, model_of(), SETTINGS)
    assert "tasks" not in {volume["name"] for volume in pod_of(job)["volumes"]}


@pytest.mark.parametrize(
    ("base", "arguments"),
    [
        (IMAGE_BASE, ["--directory", "/source"]),
        (VOLUME_BASE, ["--directory", "/source"]),
        (HUB_BASE, ["--hugging-face", f"Qwen/Qwen3-0.6B@{REVISION}"]),
    ],
)
def test_the_importer_is_told_where_the_base_is(base: Body, arguments: list[str]) -> None:
    job = importer_job(model_of(source={"base": base}), SETTINGS)
    assert container_of(job, "importer")["args"] == arguments
    assert container_of(job, "place")["args"] == arguments


def test_a_model_image_copies_its_files_before_the_import() -> None:
    job = importer_job(model_of(), SETTINGS)
    names = [container["name"] for container in pod_of(job)["initContainers"]]
    assert names == ["folders", "copy", "importer"]
    copy = container_of(job, "copy")
    assert copy["image"] == IMAGE_BASE["image"]
    assert copy["command"] == ["cp", "-rL", "/models/.", "/source/"]


@pytest.mark.parametrize(("storage", "name"), [("others", "source"), ("models", "weights")])
def test_a_claim_is_imported_read_only_from_its_path(storage: str, name: str) -> None:
    """As a volume of its own, whose files keep their group; or from the model's own volume."""
    model = model_of(
        source={"base": VOLUME_BASE}, storage={"persistentVolumeClaim": {"claimName": storage}}
    )
    job = importer_job(model, SETTINGS)
    pod, importer = pod_of(job), container_of(job, "importer")
    (source,) = [m for m in importer["volumeMounts"] if m["mountPath"] == "/source"]
    assert source == {
        "name": name,
        "mountPath": "/source",
        "readOnly": True,
        "subPath": "tiny/1",
    }
    assert [c["name"] for c in pod["initContainers"]] == ["folders", "importer"]
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    read_only = {"source": {"claimName": "models", "readOnly": True}} if name == "source" else {}
    assert claims == {"weights": {"claimName": storage}, **read_only}


@pytest.mark.parametrize(
    ("adapter", "arguments", "copied"),
    [
        ({"image": "registry.example/lora:1"}, ["--adapter", "/adapter"], ["copy-adapter"]),
        (VOLUME_BASE, ["--adapter", "/adapter"], []),
        (HUB_BASE, ["--adapter-hugging-face", f"Qwen/Qwen3-0.6B@{REVISION}"], []),
    ],
)
def test_the_importer_is_told_where_the_adapter_is_and_how_it_was_trained(
    adapter: Body, arguments: list[str], copied: list[str]
) -> None:
    source = {"base": HUB_BASE, "adapter": adapter}
    job = importer_job(model_of(source=source, adapter={"rank": 8}), SETTINGS)
    for name in ("importer", "place"):
        assert container_of(job, name)["args"][2:] == [*arguments, "--model", "arith"]
        assert json.loads(environment(job, name)["ESPALIER_ADAPTER"])["rank"] == 8
    names = [container["name"] for container in pod_of(job)["initContainers"]]
    assert names == ["folders", *copied, "importer"]


def test_a_fork_of_a_checkpoint_has_nothing_to_import() -> None:
    fork = model_of(source={"checkpointRef": {"name": "arith-000012"}})
    with pytest.raises(ValueError, match=r"spec\.source\.base"):
        importer_job(fork, SETTINGS)


TOKEN = {"name": "hub", "key": "token"}
PRIVATE = {"huggingFace": {**HUB_BASE["huggingFace"], "tokenSecretRef": TOKEN}}


def test_a_token_reaches_the_importer_by_reference_alone() -> None:
    source = {"base": PRIVATE, "adapter": HUB_BASE}
    container = container_of(importer_job(model_of(source=source), SETTINGS), "importer")
    references = {e["name"]: e["valueFrom"] for e in container["env"] if "valueFrom" in e}
    assert references == {"ESPALIER_BASE_TOKEN": {"secretKeyRef": TOKEN}}


def test_only_an_importer_that_downloads_is_online() -> None:
    hub, image = (
        environment(importer_job(model_of(source={"base": base}), SETTINGS), "importer")
        for base in (HUB_BASE, IMAGE_BASE)
    )
    assert (hub["HF_HUB_OFFLINE"], hub["TRANSFORMERS_OFFLINE"]) == ("0", "0")
    assert "HF_HUB_OFFLINE" not in image


def test_the_importer_goes_to_the_hub_by_the_charts_way() -> None:
    hub = HubSettings(
        endpoint="https://mirror.example",
        http_proxy="http://proxy:1",
        https_proxy="http://proxy:2",
        no_proxy=".svc",
        ca_config_map="roots",
        ca_key="all.pem",
        patience_seconds=60,
    )
    job = importer_job(model_of(source={"base": HUB_BASE}), replace(SETTINGS, hub=hub))
    expected = {
        "HF_ENDPOINT": "https://mirror.example",
        "HTTP_PROXY": "http://proxy:1",
        "HTTPS_PROXY": "http://proxy:2",
        "NO_PROXY": ".svc",
        "ESPALIER_HUB_PATIENCE_SECONDS": "60",
    }
    env, importer = environment(job, "importer"), container_of(job, "importer")
    assert env.items() >= expected.items()
    assert not expected.keys() & environment(job, "place").keys()
    (mount,) = [m for m in importer["volumeMounts"] if m["name"] == "hub-ca"]
    assert env["SSL_CERT_FILE"] == f"{mount['mountPath']}/all.pem"
    assert {"name": "hub-ca", "configMap": {"name": "roots"}} in pod_of(job)["volumes"]


def templated(settings: ChildSettings = SETTINGS) -> dict[str, Body]:
    """Every kind of pod that the operator starts, each with every field of a template."""
    given = {"template": TEMPLATE}
    model = model_of(trainer=given, rollout=given, jobs=given)
    run = run_of(runner=given)
    bodies = {
        "trainer": trainer_statefulset(model, settings, base=BASE, replicas=1),
        "rollout": rollout_deployment(model, settings, base=BASE),
        "importer": importer_job(model, settings),
        "runner": runner_job(run, model, settings),
        "collector": collector_job(
            [checkpoint()], "c", settings, orphaned=False, template=model.spec.jobs.template
        ),
    }
    return {name: body["spec"]["template"] for name, body in bodies.items()}


ROLES = ("trainer", "rollout", "importer", "runner", "collector")
# Fields of a template that go elsewhere than into the pod's spec as they are.
ELSEWHERE = {"labels", "annotations", "resources", "env", "imagePullSecrets", "queueName"}


@pytest.mark.parametrize("role", ROLES)
def test_every_pod_is_as_its_template_says(role: str) -> None:
    template = templated()[role]
    pod, metadata = template["spec"], template["metadata"]
    (container,) = pod["containers"]
    assert {k: pod[k] for k in TEMPLATE if k not in ELSEWHERE} == {
        k: v for k, v in TEMPLATE.items() if k not in ELSEWHERE
    }
    assert container["resources"] == TEMPLATE["resources"]
    assert [e for e in container["env"] if e in TEMPLATE["env"]] == TEMPLATE["env"]
    assert metadata["labels"].items() >= TEMPLATE["labels"].items()
    assert metadata["labels"]["espalier.dev/role"] == role
    assert metadata["annotations"].items() >= TEMPLATE["annotations"].items()


@pytest.mark.parametrize("role", ROLES)
def test_every_pod_pulls_with_the_secrets_of_the_installation_and_its_own(role: str) -> None:
    pod = templated(replace(SETTINGS, pull_secrets=("all", "team")))[role]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "all"}, {"name": "team"}]


def test_a_pod_without_a_template_still_pulls_with_the_secrets_of_the_installation() -> None:
    settings = replace(SETTINGS, pull_secrets=("all",))
    job = importer_job(model_of(), settings)
    assert pod_of(job)["imagePullSecrets"] == [{"name": "all"}]


@pytest.mark.parametrize("role", ROLES)
def test_users_and_groups_are_ours_or_the_platforms(role: str) -> None:
    ours = templated()[role]["spec"]["securityContext"]
    assert {ours.pop(name) for name in ("runAsUser", "runAsGroup", "fsGroup")} == {65532}
    theirs = templated(replace(SETTINGS, assigned_ids=True))[role]["spec"]
    assert theirs["securityContext"] == ours
    assert ours["runAsNonRoot"] is True
    assert {"name": "USER", "value": "espalier"} in theirs["containers"][0]["env"]


def test_a_variable_of_the_template_takes_the_place_of_the_installations() -> None:
    env = [{"name": "HF_ENDPOINT", "value": "https://near.example"}]
    model = model_of(source={"base": HUB_BASE}, jobs={"template": {"env": env}})
    hub = HubSettings(endpoint="https://far.example")
    container = container_of(importer_job(model, replace(SETTINGS, hub=hub)), "importer")
    assert [e for e in container["env"] if e["name"] == "HF_ENDPOINT"] == env


def test_an_importer_has_the_resources_of_its_template_too() -> None:
    importer = container_of({"spec": {"template": templated()["importer"]}}, "importer")
    assert importer["resources"] == TEMPLATE["resources"]


def test_trainers_rollouts_and_runners_are_told_where_spans_go_unless_a_template_says_other() -> (
    None
):
    url = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel.traces:4318"}
    here = [{"name": "OTEL_TRACES_SAMPLER", "value": "always_off"}]
    settings = replace(SETTINGS, telemetry={**url, "OTEL_TRACES_SAMPLER": "always_on"})
    model = model_of(trainer={"template": {"env": here}})
    trainer = environment(trainer_statefulset(model, settings, base=BASE, replicas=1))
    rollout = environment(rollout_deployment(model, settings, base=BASE))
    runner = environment(runner_job(run_of(), model, settings))
    assert {name: trainer[name] for name in settings.telemetry} == {
        **url,
        "OTEL_TRACES_SAMPLER": "always_off",
    }
    for told in (rollout, runner):
        assert told.items() >= settings.telemetry.items()
    plain = environment(trainer_statefulset(model_of(), SETTINGS, base=BASE, replicas=1))
    assert not [name for name in plain if name.startswith("OTEL_")]


def test_no_variable_that_a_pod_sets_itself_can_be_given(tmp_path: Path) -> None:
    own = {name for template in templated().values() for name in _names(template)}
    own -= {entry["name"] for entry in TEMPLATE["env"]}
    own |= {*flags.environment(tmp_path, threads=1), *flags.environment(tmp_path, threads=None)}
    assert {name for name in own if not name.startswith("ESPALIER_")} <= RESERVED


def _names(template: Body) -> list[str]:
    pod = template["spec"]
    every = (*pod["containers"], *pod.get("initContainers", ()))
    return [entry["name"] for container in every for entry in container["env"]]


@pytest.mark.parametrize("part", ["trainer", "rollout"])
def test_a_pod_may_take_as_long_to_start_as_its_model_says(part: str) -> None:
    model = model_of(**{part: {"startupSeconds": 1801}})
    bodies = {
        "trainer": trainer_statefulset(model, SETTINGS, base=BASE, replicas=1),
        "rollout": rollout_deployment(model, SETTINGS, base=BASE),
    }
    probe = pod_of(bodies[part])["containers"][0]["startupProbe"]
    assert 1801 <= probe["periodSeconds"] * probe["failureThreshold"] <= 1803
    assert bodies["rollout"]["spec"]["progressDeadlineSeconds"] > (
        1801 if part == "rollout" else 1800
    )


def test_pods_without_resources_request_a_little_and_have_no_limits() -> None:
    resources = [pod_of(child)["containers"][0]["resources"] for child in workloads()]
    assert all({*entry} == {"requests"} for entry in resources)


def test_jobs_end_at_once_when_only_the_user_can_help() -> None:
    for job in (c for c in workloads() if c["kind"] == "Job"):
        ours = containers_of_ours(job)
        first = job["spec"]["podFailurePolicy"]["rules"][: len(ours)]
        assert {rule["action"] for rule in first} == {"FailJob"}
        assert {tuple(rule["onExitCodes"]["values"]) for rule in first} == {(64,)}
        assert {rule["onExitCodes"]["containerName"] for rule in first} == {*ours}


def test_an_image_without_the_models_files_ends_the_import_at_once() -> None:
    source = {"base": IMAGE_BASE, "adapter": {"image": "registry.example/adapter:1"}}
    job = importer_job(model_of(source=source), SETTINGS)
    copies = [container["name"] for container in pod_of(job)["initContainers"]]
    assert copies == ["folders", "copy", "copy-adapter", "importer"]
    ends = {
        rule["onExitCodes"]["containerName"]: rule["onExitCodes"]["values"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if rule["action"] == "FailJob"
    }
    # What cp ends with when it does not find them.
    ours = {"folders": [64], "importer": [64], "place": [64]}
    assert ends == {**ours, "copy": [1], "copy-adapter": [1]}


def test_an_intent_is_current_until_it_or_the_replicas_change() -> None:
    intent = trainer_statefulset(model_of(), SETTINGS, base=BASE, replicas=1)
    scaled = trainer_statefulset(model_of(), SETTINGS, base=BASE, replicas=0)
    assert is_current(intent, intent)
    assert not is_current(None, intent)
    assert not is_current(intent, scaled)
    assert not is_current({**intent, "spec": {**intent["spec"], "replicas": 5}}, intent)
