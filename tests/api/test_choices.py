"""What authors of models and runs may choose is bounded by the chart, on a real API server."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml
from dev.apiserver import ApiServer, ApiServerError
from tests.api.test_admission_policy import As, refused
from tests.api.test_chart import CHART, helm
from tests.kube.children import BASE, HUB_BASE, REVISION, SETTINGS, model_of, run_of

from espalier.core.manifests.importer import importer_job
from espalier.core.manifests.installation import KEYS_FILE, HubSettings
from espalier.core.manifests.runner import runner_job
from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.trainer import trainer_statefulset

SYSTEM, TEAM = "choices-system", "choices-team"
INSTALLED = (
    *(f"images.{name}={name}:1" for name in ("operator", "trainer", "rollout", "runner")),
    f"namespaces={{{TEAM}}}",
    "imagePullSecrets[0].name=everybodys",
    "hub.caBundle.configMap=certificates",
)
PULLING = dataclasses.replace(
    SETTINGS,
    pull_secrets=("everybodys",),
    public_keys=KEYS_FILE,
    hub=HubSettings(ca_config_map="certificates"),
)
CHOICES = {
    "images": ["registry.example/models/", "registry.example/lone:1"],
    "claims": ["espalier-weights", "boards"],
    "secrets": ["hub", "mirror"],
    "configMaps": ["tasks", "scores"],
    "priorityClasses": ["low"],
    "runtimeClasses": ["nvidia"],
    "nodeLabels": ["pool=training", "topology.kubernetes.io/zone"],
    "tolerations": ["nvidia.com/gpu", "team=ours"],
}

Body = dict[str, Any]


def policies(choices: Body, *values: str) -> str:
    """The objects of the chart that bound these choices."""
    sets = [part for value in (*INSTALLED, *values) for part in ("--set", value)]
    sets += ["--set-json", f"admissionPolicy.choices={json.dumps(choices)}"]
    only = ("--show-only", "templates/choices.yaml", "--kube-version", "1.35.0")
    return helm("template", "espalier", str(CHART), "--namespace", SYSTEM, *only, *sets)


@pytest.fixture(scope="module")
def operator(apiserver: ApiServer) -> As:
    """The operator where choices are bounded."""
    apiserver.create_namespace(TEAM)
    user = f"system:serviceaccount:{SYSTEM}:espalier-operator"
    binding = ("create", "rolebinding", "operators", "-n", TEAM, "--clusterrole=edit")
    apiserver.kubectl(*binding, f"--user={user}")
    apiserver.kubectl("apply", "-f", "-", stdin=policies(CHOICES))
    made = As(apiserver, user)
    apiserver.wait_for("the policy to be in force", lambda: attempt(made, importer(image="x")))
    return made


def attempt(operator: As, body: Body) -> str:
    """What the policy says against a workload of the operator's; empty where it may be."""
    arguments = ("create", "--dry-run=server", "-f", "-")
    return refused(lambda: operator(*arguments, stdin=text(body), namespace=TEAM))


def text(body: Body) -> str:
    return yaml.safe_dump({**body, "metadata": {**body["metadata"], "namespace": TEAM}})


def importer(image: str = "registry.example/models/a:1", **spec: Any) -> Body:
    return importer_job(model_of(**({"source": {"base": {"image": image}}} | spec)), SETTINGS)


def of_claim(name: str) -> Body:
    return {"base": {"persistentVolumeClaim": {"claimName": name, "path": "a"}}}


def runner(**spec: Any) -> Body:
    return runner_job(run_of(**spec), model_of(), SETTINGS)


def trainer(**template: Any) -> Body:
    model = model_of(trainer={"template": template})
    return trainer_statefulset(model, PULLING, base=BASE, replicas=1)


def shown(name: str) -> Body:
    """A variable of a ConfigMap."""
    reference = {"configMapKeyRef": {"name": name, "key": "a"}}
    return {"env": [{"name": "SHOWN", "valueFrom": reference}]}


def from_secret(name: str) -> Body:
    """A variable of a template, beside one of a text."""
    reference = {"secretKeyRef": {"name": name, "key": "password"}}
    return {"env": [{"name": "PLAIN", "value": "x"}, {"name": "SHOWN", "valueFrom": reference}]}


def of_hub(secret: str) -> Body:
    key = {"name": secret, "key": "token"}
    repository = {"repository": "a/b", "revision": REVISION, "tokenSecretRef": key}
    return {"base": {"huggingFace": repository}}


def of_tracker(secret: str) -> Body:
    key = {"name": secret, "key": "key"}
    return {"wandb": {"apiKeySecretRef": key}}


def rewards(config_map: str) -> list[Body]:
    reference = {"name": config_map, "key": "score.py"}
    return [{"name": "score", "python": {"configMapRef": reference}}]


def nodes(operator: str, key: str, *values: str, of: str = "matchExpressions") -> Body:
    """An affinity to nodes."""
    requirement = {"key": key, "operator": operator} | ({"values": [*values]} if values else {})
    required = {"nodeSelectorTerms": [{of: [requirement]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def preferred(key: str, value: str) -> Body:
    """A preference for nodes."""
    requirement = {"key": key, "operator": "In", "values": [value]}
    weighed = [{"weight": 1, "preference": {"matchExpressions": [requirement]}}]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": weighed}}


def pods(which: str, topology: str) -> Body:
    """An affinity to pods, or against them."""
    term = {"topologyKey": topology, "labelSelector": {"matchLabels": {"a": "b"}}}
    return {which: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


PYTHON = {"image": "registry.example/games:1", "tasks": "game:tasks", "rollout": "game:rollout"}
LOW = {"template": {"priorityClassName": "low"}}
HIGH = {"template": {"priorityClassName": "system-cluster-critical"}}
MAY = {
    "an image below what is listed": importer(),
    "an image that is listed": importer("registry.example/lone:1"),
    "a claim": importer(source=of_claim("boards")),
    "a Secret as a variable": trainer(**from_secret("hub")),
    "a Secret to pull with, and that of every pod": trainer(imagePullSecrets=[{"name": "mirror"}]),
    "a ConfigMap as a variable": trainer(**shown("scores")),
    "ConfigMaps of tasks and of rewards": runner(rewards=rewards("scores")),
    "those that the installation mounts": importer_job(
        model_of(source={"base": HUB_BASE}), PULLING
    ),
    "a runtime class": trainer(runtimeClassName="nvidia"),
    "nodes by a label": trainer(nodeSelector={"pool": "training"}),
    "nodes by any value of a label": trainer(nodeSelector={"topology.kubernetes.io/zone": "a"}),
    "nodes by their affinity": trainer(
        affinity=nodes("In", "pool", "training")
        | pods("podAffinity", "topology.kubernetes.io/zone")
    ),
    "nodes far from others": trainer(affinity=pods("podAntiAffinity", "kubernetes.io/hostname")),
    "a taint of any value": trainer(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}]),
    "one of any value, by its value": trainer(
        tolerations=[{"key": "nvidia.com/gpu", "value": "a"}]
    ),
    "a taint by its value": trainer(tolerations=[{"key": "team", "value": "ours"}]),
    "a token of the hub": importer(source=of_hub("hub")),
    "a priority class": trainer_statefulset(model_of(trainer=LOW), SETTINGS, base=BASE, replicas=1),
    "none": rollout_deployment(model_of(), SETTINGS, base=BASE),
}
MAY_NOT = {
    "an image": (importer("registry.example/other:1"), "image registry.example/other:1"),
    "an image that begins alike": (importer("registry.example/models-x/a:1"), "image registry.ex"),
    "one beyond what is listed": (importer("registry.example/lone:12"), "image registry.example/l"),
    "one that plays a run": (
        runner(taskset={"seed": 1, "python": PYTHON}),
        "image registry.example/games:1",
    ),
    "a claim to read from": (importer(source=of_claim("ledger")), "claim ledger"),
    "a claim to write to": (
        importer(storage={"persistentVolumeClaim": {"claimName": "ledger"}}),
        "claim ledger",
    ),
    "a claim of a tracker": (
        runner(tracking={"tensorBoard": {"claimName": "ledger"}}),
        "claim ledger",
    ),
    "a Secret as a variable": (trainer(**from_secret("ledger")), "Secret ledger may not be named"),
    "a Secret that begins alike": (trainer(**from_secret("hub-of-others")), "Secret hub-of-others"),
    "a Secret to pull with": (
        trainer(imagePullSecrets=[{"name": "hub"}, {"name": "ledger"}]),
        "Secret ledger may not be named",
    ),
    "that of every pod as a variable": (trainer(**from_secret("everybodys")), "Secret everybodys"),
    "a Secret of the namespace as a token": (importer(source=of_hub("ledger")), "Secret ledger"),
    "one as a tracker's key": (runner(tracking=of_tracker("ledger")), "Secret ledger"),
    "a ConfigMap as a variable": (trainer(**shown("ledger")), "ConfigMap ledger may not be named"),
    "a ConfigMap of tasks": (
        runner(taskset={"seed": 1, "configMap": {"name": "ledger"}}),
        "ConfigMap ledger",
    ),
    "one of rewards": (runner(rewards=rewards("ledger")), "ConfigMap ledger"),
    "a runtime class": (trainer(runtimeClassName="host"), "runtime class host"),
    "nodes by another value": (
        trainer(nodeSelector={"pool": "serving"}),
        "node label pool=serving may not be chosen",
    ),
    "nodes by another label": (
        trainer(nodeSelector={"pool": "training", "node-role.kubernetes.io/control-plane": ""}),
        "node label node-role.kubernetes.io/control-plane=",
    ),
    "nodes whose label has any value": (
        trainer(affinity=nodes("Exists", "pool")),
        "node label pool",
    ),
    "nodes of two values": (
        trainer(affinity=nodes("In", "pool", "training", "serving")),
        "node label pool",
    ),
    "a node by its name": (
        trainer(affinity=nodes("In", "metadata.name", "a", of="matchFields")),
        "node label metadata.name",
    ),
    "nodes that are preferred": (trainer(affinity=preferred("pool", "serving")), "node label pool"),
    "the nodes of other pods": (
        trainer(affinity=pods("podAffinity", "kubernetes.io/hostname")),
        "node label kubernetes.io/hostname",
    ),
    "a taint": (
        trainer(
            tolerations=[{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]
        ),
        "toleration of node-role.kubernetes.io/control-plane of any value may not be set",
    ),
    "a taint of another value": (
        trainer(tolerations=[{"key": "team", "value": "theirs"}]),
        "toleration of team=theirs",
    ),
    "a taint of any value where one is listed": (
        trainer(tolerations=[{"key": "team", "operator": "Exists"}]),
        "toleration of team of any value",
    ),
    "every taint": (trainer(tolerations=[{"operator": "Exists"}]), "toleration of every taint"),
    "a priority class": (
        rollout_deployment(model_of(rollout=HIGH), SETTINGS, base=BASE),
        "priority class system-cluster-critical",
    ),
}


@pytest.mark.parametrize("name", MAY)
def test_what_is_listed_may_be_chosen(operator: As, name: str) -> None:
    assert attempt(operator, MAY[name]) == ""


@pytest.mark.parametrize("name", MAY_NOT)
def test_what_is_not_listed_is_refused_by_its_name(operator: As, name: str) -> None:
    body, says = MAY_NOT[name]
    told = attempt(operator, body)
    assert says in told
    assert "admissionPolicy.choices." in told


def test_workloads_of_others_choose_what_they_like(operator: As) -> None:
    body = importer("registry.example/other:1")
    del body["spec"]["template"]["metadata"]["labels"]["espalier.dev/role"]
    assert attempt(operator, body) == ""


def test_a_queue_places_the_jobs_that_it_lets_go(operator: As, apiserver: ApiServer) -> None:
    user = "system:serviceaccount:kueue-system:kueue-controller-manager"
    binding = ("create", "rolebinding", "queues", "-n", TEAM, "--clusterrole=edit")
    apiserver.kubectl(*binding, f"--user={user}")
    body = importer()
    body["spec"]["template"]["spec"] |= {
        "nodeSelector": {"flavor": "spot"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
    }
    assert "node label flavor=spot" in attempt(operator, body)
    assert attempt(As(apiserver, user), body) == ""


def test_nothing_is_bounded_unless_it_is_listed() -> None:
    with pytest.raises(ApiServerError, match="could not find template"):
        policies({})
    only = policies({"claims": []})
    assert "variables.claims.size() == 0" in only
    assert "may not be run here" not in only
    with pytest.raises(ApiServerError, match=r"admissionPolicy\.enabled is false"):
        policies(CHOICES, "admissionPolicy.enabled=false")
    for name in CHOICES:
        with pytest.raises(ApiServerError, match=name):
            policies({name: ["registry.example/' + 'x"]})
