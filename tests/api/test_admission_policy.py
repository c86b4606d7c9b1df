"""The chart's admission policy on a real API server with Kubernetes' own controllers.

Bob may do all that the role edit allows, pods and workloads included. What makes a pod Espalier's
own he can neither create, nor borrow, nor change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from dev.apiserver import ApiServer, ApiServerError
from tests.api.manifests import RUN, edited, named
from tests.api.test_chart import CHART, IMAGES, documents, helm
from tests.kube.children import BASE, SETTINGS, model_of

from espalier.core.manifests.importer import importer_job
from espalier.core.manifests.labels import child_labels
from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.trainer import trainer_statefulset

SYSTEM, TEAM, ELSEWHERE = "policy-system", "policy-team", "policy-elsewhere"
BOB, OPERATOR = "bob", f"system:serviceaccount:{SYSTEM}:espalier-operator"
GATEWAY = f"system:serviceaccount:{SYSTEM}:espalier-gateway"
LABELS = child_labels("rollout", "arith")
POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")

Body = dict[str, Any]


class As:
    """kubectl as one user in the team's namespace."""

    def __init__(self, server: ApiServer, user: str) -> None:
        self.server = server
        self.user = user

    def __call__(self, *arguments: str, stdin: str | None = None, namespace: str = TEAM) -> str:
        return self.server.kubectl("--as", self.user, "-n", namespace, *arguments, stdin=stdin)

    def create(self, body: Body, namespace: str = TEAM) -> str:
        metadata = {**body["metadata"], "namespace": namespace}
        text = json.dumps({**body, "metadata": metadata})
        return self("create", "-f", "-", stdin=text, namespace=namespace)


@pytest.fixture(scope="module")
def policed(apiserver: ApiServer) -> ApiServer:
    """The policies in force, and Espalier's workloads made by its operator."""
    for namespace in (TEAM, ELSEWHERE):
        apiserver.create_namespace(namespace)
        apiserver.kubectl(
            *("create", "rolebinding", "editors", "-n", namespace, "--clusterrole=edit"),
            *(f"--user={BOB}", f"--user={OPERATOR}"),
        )
    sets = [argument for image in IMAGES for argument in ("--set", image)]
    sets += ["--set", f"namespaces={{{TEAM}}}", "--kube-version", "1.35.0"]
    text = helm("template", "espalier", str(CHART), "--namespace", SYSTEM, *sets)
    found = [item for item in documents(text) if item["kind"] in POLICIES]
    assert len(found) == 14
    apiserver.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(found))
    apiserver.wait_for("the policies to be in force", lambda: refused(_probe(apiserver)))
    return apiserver


def _probe(server: ApiServer) -> Callable[[], str]:
    text = json.dumps({**pod("probe"), "metadata": {"name": "probe", "labels": LABELS}})
    bob = As(server, BOB)
    return lambda: bob("create", "--dry-run=server", "-f", "-", stdin=text)


def refused(act: Callable[[], str]) -> str:
    """What the policy says against it; empty where it lets it pass."""
    try:
        act()
    except ApiServerError as error:
        if "ValidatingAdmissionPolicy" not in str(error):
            raise
        return str(error)
    return ""


@pytest.fixture(scope="module")
def bob(policed: ApiServer) -> As:
    return As(policed, BOB)


@pytest.fixture(scope="module")
def made(policed: ApiServer) -> dict[str, str]:
    """By role, the pod that Kubernetes made for the operator's workload."""
    model, operator = model_of(), As(policed, OPERATOR)
    for body in (
        trainer_statefulset(model, SETTINGS, base=BASE, replicas=1),
        rollout_deployment(model, SETTINGS, base=BASE),
        importer_job(model, SETTINGS),
    ):
        # The model itself is not there, and what it owned would be collected.
        del body["metadata"]["ownerReferences"]
        operator.create(body)
    return {role: _pod_of(policed, role) for role in ("trainer", "rollout", "importer")}


def _pod_of(server: ApiServer, role: str) -> str:
    def names() -> list[str]:
        selector = f"--selector=espalier.dev/role={role}"
        return server.kubectl("get", "pods", "-n", TEAM, selector, "-o", "name").split()

    server.wait_for(f"the pod of the {role}", lambda: bool(names()))
    return names()[0]


def pod(name: str, labels: dict[str, str] | None = None, **metadata: Any) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}, **metadata},
        "spec": {"containers": [{"name": "main", "image": "x"}]},
    }


def workload(kind: str, labels: dict[str, str]) -> Body:
    """A workload of Bob's that carries no label of ours itself, and makes pods that do."""
    template = {"metadata": {"labels": labels}, "spec": pod("x")["spec"]}
    spec: Body = {"selector": {"matchLabels": labels}, "template": template}
    api = {"Job": "batch/v1", "ReplicationController": "v1"}.get(kind, "apps/v1")
    if kind == "StatefulSet":
        spec["serviceName"] = "x"
    if kind == "Job":
        del spec["selector"]
        template["spec"]["restartPolicy"] = "Never"
    if kind == "ReplicationController":
        spec["selector"] = labels
    return {"apiVersion": api, "kind": kind, "metadata": {"name": "forged"}, "spec": spec}


def test_kubernetes_own_controllers_make_the_pods_of_the_operators_workloads(
    made: dict[str, str],
) -> None:
    assert all(made.values())


def test_a_pod_with_our_labels_is_refused_and_told_so(bob: As) -> None:
    said = refused(lambda: bob.create(pod("forged", LABELS)))
    assert "bob may neither create them nor change their labels" in said


def test_so_is_one_that_borrows_the_controller_and_every_label_of_an_honest_one(
    bob: As, made: dict[str, str]
) -> None:
    honest = json.loads(bob("get", made["rollout"], "-o", "json"))["metadata"]
    forged = pod("forged", honest["labels"], ownerReferences=honest["ownerReferences"])
    for owner in forged["metadata"]["ownerReferences"]:
        owner["blockOwnerDeletion"] = False
    assert refused(lambda: bob.create(forged))
    # Kubernetes takes in whatever its ReplicaSet selects, owner or not.
    assert refused(lambda: bob.create(pod("forged", honest["labels"])))


def test_a_pod_of_ones_own_does_not_become_ours(bob: As) -> None:
    bob.create(pod("plain"))
    assert refused(lambda: bob("label", "pod", "plain", "espalier.dev/role=trainer"))
    bob("label", "pod", "plain", "team=blue")


def test_nor_by_a_status_which_may_be_written_all_the_same(policed: ApiServer, bob: As) -> None:
    """Labels come with a pod's status, and Kubernetes' controllers take in what they select."""
    role = ("create", "role", "statuses", "--verb=get,patch", "--resource=pods/status")
    policed.kubectl(*role, "-n", TEAM)
    binding = ("create", "rolebinding", "statuses", "--role=statuses", f"--user={BOB}")
    policed.kubectl(*binding, "-n", TEAM)
    bob.create(pod("told"))
    status = ("patch", "pod", "told", "--subresource=status", "--type=merge", "-p")
    assert refused(lambda: bob(*status, json.dumps({"metadata": {"labels": LABELS}})))
    bob(*status, json.dumps({"status": {"phase": "Running"}}))


def test_the_status_of_a_pod_of_ours_is_its_nodes_to_write(
    policed: ApiServer, made: dict[str, str]
) -> None:
    status = ("patch", made["rollout"], "--subresource=status", "--type=merge", "-p")
    policed.kubectl("-n", TEAM, *status, json.dumps({"status": {"podIP": "10.0.0.1"}}))


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"containers": [{"name": "rollout", "image": "evil"}]}},
        {"metadata": {"labels": {"espalier.dev/model": "other"}}},
        {"metadata": {"labels": {"espalier.dev/run": "other"}}},
        {"metadata": {"labels": {"espalier.dev/role": None}}},
        {"metadata": {"ownerReferences": None}},
    ],
    ids=["image", "model", "run", "role", "owner"],
)
def test_a_pod_of_ours_does_not_change_what_it_is(
    bob: As, made: dict[str, str], patch: Body
) -> None:
    text = json.dumps(patch)
    # A merge patch sets lists as a whole, so the one of containers goes by strategy.
    kind = "strategic" if "spec" in patch else "merge"
    assert refused(lambda: bob("patch", made["rollout"], f"--type={kind}", "-p", text))


@pytest.mark.parametrize(
    "kind",
    ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "ReplicationController"],
)
def test_no_workload_of_anothers_makes_such_pods(bob: As, kind: str) -> None:
    said = refused(lambda: bob.create(workload(kind, LABELS)))
    assert "made for Espalier's operator alone: bob" in said


@pytest.mark.parametrize("name", ["deployment/arith-rollout", "statefulset/arith-trainer"])
def test_the_template_of_ours_is_the_operators(bob: As, made: dict[str, str], name: str) -> None:
    container = {"rollout": "rollout", "trainer": "trainer"}[name.rpartition("-")[2]]
    evil = [{"name": container, "image": "evil"}]
    text = json.dumps({"spec": {"template": {"spec": {"containers": evil}}}})
    assert refused(lambda: bob("patch", name, "-p", text))
    role = json.dumps({"spec": {"template": {"metadata": {"labels": {"espalier.dev/run": "r"}}}}})
    assert refused(lambda: bob("patch", name, "-p", role))


def test_what_people_and_autoscalers_do_goes_on(bob: As, made: dict[str, str]) -> None:
    bob("annotate", made["rollout"], "looked-at=yes")
    bob("scale", "deployment/arith-rollout", "--replicas=2")
    bob("rollout", "restart", "deployment/arith-rollout")
    bob("delete", made["trainer"], "--wait=false")
    bob.create(workload("Deployment", {"app": "mine"}))


def test_a_namespace_that_is_not_served_is_left_alone(bob: As) -> None:
    bob.create(pod("theirs", LABELS), namespace=ELSEWHERE)


def test_the_gateway_calls_a_trainer_back_and_writes_nothing_else_of_a_run(
    policed: ApiServer,
) -> None:
    role = ("create", "role", "waker", "--verb=get,patch", "--resource=trainingruns.espalier.dev")
    policed.kubectl(*role, "--resource=trainingruns.espalier.dev/status", "-n", TEAM)
    binding = ("create", "rolebinding", "waker", "--role=waker", f"--user={GATEWAY}", "-n", TEAM)
    policed.kubectl(*binding)
    run = json.dumps(named(edited(RUN, "spec.driver", "Client"), "mine"))
    policed.kubectl("create", "-f", "-", "-n", TEAM, stdin=run)
    since = "2026-01-01T00:00:00Z"
    status = ("patch", "trun/mine", "--subresource=status", "--type=merge", "-p")
    said = {"step": 3, "idleSince": since, "observedGeneration": 1}
    policed.kubectl(*status, json.dumps({"status": said}), "-n", TEAM)
    gateway = As(policed, GATEWAY)
    gateway(*status, json.dumps({"status": {"wokenFor": since}}))
    saved = [{"path": "team.0123456789abcdef:train:0/weights/first", "time": since}]
    gateway(*status, json.dumps({"status": {"saves": saved}}))
    barren = {"step": 4, "rounds": 1, "reason": "RewardsUninformative", "message": "equal"}
    gateway(*status, json.dumps({"status": {"barrenRounds": barren}}))
    for lie in ({"step": 9}, {"idleSince": None}, {"term": 7}):
        said = refused(lambda change=lie: gateway(*status, json.dumps({"status": change})))
        assert "writes status.wokenFor, status.baseEvaluations and status.barrenRounds of" in said
    kept = json.loads(policed.kubectl("get", "trun/mine", "-n", TEAM, "-o", "json"))["status"]
    assert (kept["step"], kept["idleSince"], kept["wokenFor"]) == (3, since, since)
    assert kept["saves"] == saved


KEYS = "secret/espalier-api-keys"
CAROL = "carol"


def key_secret(*entries: str, value: str = "e30=") -> Body:
    metadata = {"name": "espalier-api-keys"}
    data = dict.fromkeys(entries, value)
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


@pytest.fixture(scope="module")
def carol(policed: ApiServer) -> As:
    """Carol may write the Secret of the keys, and make tokens of one service account."""
    verbs = ("--verb=get,create,update,patch,delete", "--resource=secrets")
    policed.kubectl("create", "role", "keeper", "-n", TEAM, *verbs)
    policed.kubectl(
        *("create", "role", "issuer", "-n", TEAM, "--verb=create"),
        *("--resource=serviceaccounts/token", "--resource-name=bot.one"),
    )
    for role in ("keeper", "issuer"):
        binding = ("create", "rolebinding", role, f"--role={role}", f"--user={CAROL}")
        policed.kubectl(*binding, "-n", TEAM)
    carol = As(policed, CAROL)
    text = json.dumps(key_secret("0123456789ab.other"))
    policed.wait_for(
        "the policy of API keys to be in force",
        lambda: refused(lambda: carol("create", "--dry-run=server", "-f", "-", stdin=text)),
    )
    return carol


def test_an_api_key_is_issued_by_those_who_may_make_tokens_of_its_account(
    carol: As, bob: As
) -> None:
    mine, others, second = "0123456789ab.bot.one", "0123456789ab.bot", "ba9876543210.bot.one"

    def patched(**data: str | None) -> None:
        carol("patch", KEYS, "--type=merge", "-p", json.dumps({"data": data}))

    assert refused(lambda: carol.create(key_secret(mine, others)))
    hidden = {**key_secret(mine), "stringData": {others: "{}"}}
    assert refused(lambda: carol.create(hidden))
    carol.create(key_secret(mine))
    said = refused(lambda: patched(**{others: "e30="}))
    assert "carol may not create serviceaccounts/token of every account here: bot" in said
    text = json.dumps(key_secret(others))
    sides = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    assert refused(lambda: carol(*sides, stdin=text))
    assert refused(lambda: carol("replace", "-f", "-", stdin=text))
    patched(**{second: "e30="})
    # Whoever may write the Secret may revoke, also what others have issued.
    carol.server.kubectl("patch", KEYS, "-n", TEAM, "-p", json.dumps({"data": {others: "e30="}}))
    patched(**{mine: None})
    patched(**{second: "eyB9"})
    assert refused(lambda: patched(**{others: "eyB9"}))
    patched(**{others: None})
    carol("delete", KEYS)
    # The role edit may make tokens of every account, and so a key of each.
    bob.create(key_secret(others))
    carol("delete", KEYS)


def test_an_entry_that_names_no_account_is_refused(carol: As) -> None:
    for entry in ("bot.one", "0123456789ab", "0123456789ab.", "0123456789AB.bot.one"):
        assert "is called <id>.<service account>" in refused(
            lambda entry=entry: carol.create(key_secret(entry))  # type: ignore[misc]
        )


def test_other_secrets_and_other_namespaces_are_left_alone(carol: As, policed: ApiServer) -> None:
    other = key_secret("0123456789ab.bot")
    carol.create({**other, "metadata": {"name": "espalier-api-keys-of-mine"}})
    policed.kubectl("create", "-n", ELSEWHERE, "-f", "-", stdin=json.dumps(other))
