"""What the gateway writes in a caller's name, by the rights that the chart gives to both."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from dev.apiserver import ApiServer, ApiServerError
from kubernetes.aio.client.configuration import Configuration
from tests.api.test_chart import CHART, IMAGES, helm
from tests.gateway.conftest import token

from espalier.api.meta import API_VERSION
from espalier.core.gitowner import GATEWAY_MANAGER, REQUESTED_BY
from espalier.core.head.editor import editor
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.on_behalf import acting_for
from espalier.gateway.hud.fork import Forks
from espalier.gateway.hud.set_head import edited
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cache import Cache
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import Body, ObjectKey

SPEC: Body = {
    "source": {"base": {"image": "registry.example/model:1"}},
    "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
}
OF_A_TOKEN = (
    ("authentication.kubernetes.io/credential-id", ("JTI=1",)),
    ("authentication.kubernetes.io/pod-name", ("p",)),
)
KINDS = ("rbac", "ServiceAccount", "ValidatingAdmissionPolicy")


@pytest.fixture(scope="module")
def team(apiserver: ApiServer) -> str:
    """A served namespace with the rights of the chart; ann may edit there, and bob may not."""
    name = f"team-{uuid.uuid4().hex[:8]}"
    for namespace in (name, f"{name}-system"):
        apiserver.create_namespace(namespace)
    sets = [argument for image in IMAGES for argument in ("--set", image)]
    rendered = helm(
        *("template", "espalier", str(CHART), "--namespace", f"{name}-system"),
        *(*sets, "--set", f"namespaces={{{name}}}", "--kube-version", "1.35.0"),
    )
    wanted = [part for part in rendered.split("\n---\n") if any(kind in part for kind in KINDS)]
    apiserver.kubectl("apply", "-f", "-", stdin="\n---\n".join(wanted))
    for account in ("ann", "bob"):
        apiserver.kubectl("create", "serviceaccount", account, "-n", name)
    for role in ("espalier-edit", "espalier-view"):
        apiserver.kubectl(
            *("create", "rolebinding", f"ann-{role}", "-n", name, f"--clusterrole={role}"),
            f"--serviceaccount={name}:ann",
        )
    return name


@pytest.fixture
async def as_gateway(apiserver: ApiServer, team: str) -> AsyncIterator[KubernetesCluster]:
    """The API server as the gateway's own service account reaches it."""
    configuration = Configuration(host=apiserver.url)
    configuration.ssl_ca_cert = str(apiserver.directory / "ca.crt")
    shown = token(apiserver, f"{team}-system", "espalier-gateway")
    configuration.api_key = {"BearerToken": f"Bearer {shown}"}
    async with KubernetesCluster(configuration) as cluster:
        yield cluster


def account(namespace: str, name: str) -> User:
    everybody = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    name = f"system:serviceaccount:{namespace}:{name}"
    return User(name, (*everybody, "system:authenticated"), uid="1", extra=OF_A_TOKEN)


async def forked(cluster: KubernetesCluster, user: User, name: NamespacedName) -> None:
    class Anybody(Authenticator):
        """As if the review had said yes, so that the API server alone decides."""

        async def allowed(self, *_: object) -> bool:
            return True

    watch = WorldWatch(Cache(), (name.namespace,))
    await Forks(watch, cluster, Anybody(cluster)).of_spec(user, name, SPEC, {})


async def test_a_fork_is_made_by_the_callers_rights_and_not_by_the_gateways(
    apiserver: ApiServer, as_gateway: KubernetesCluster, team: str
) -> None:
    await forked(as_gateway, account(team, "ann"), NamespacedName(team, "anns"))
    for kind in ("trainablemodel", "trainingrun", "checkpointhead"):
        said = apiserver.kubectl(
            *("get", kind, "anns", "-n", team, "-o", "json", "--show-managed-fields")
        )
        (entry,) = json.loads(said)["metadata"]["managedFields"]
        assert entry["manager"] == GATEWAY_MANAGER
    for user in (account(team, "bob"), account("kube-system", "ann"), User("eve", ("ml",))):
        with pytest.raises(RefusalError) as refused:
            await forked(as_gateway, user, NamespacedName(team, "others"))
        ours = user.name.endswith(f"{team}:bob")
        assert refused.value.reason == ("Forbidden" if ours else "NotImpersonated")
        assert refused.value.status == 403
    with pytest.raises(ClusterError, match="forbidden"):
        await as_gateway.create("TrainableModel", named(team, "own"))


async def test_uid_and_extra_of_the_caller_go_with_it_and_a_key_that_is_not_named_is_refused(
    as_gateway: KubernetesCluster, team: str
) -> None:
    ann = account(team, "ann")
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    acting = acting_for(as_gateway, ann)
    assert isinstance(acting, KubernetesCluster)
    seen = (await acting._call("POST", path, body=review))["status"]
    assert (seen["userInfo"]["username"], seen["userInfo"]["uid"]) == (ann.name, "1")
    assert seen["userInfo"]["extra"] == {key: list(values) for key, values in OF_A_TOKEN}
    limited = replace(ann, extra=(*OF_A_TOKEN, ("scopes.example", ("read",))))
    with pytest.raises(RefusalError, match=r"cannot impersonate resource .userextras/scopes.exa"):
        await forked(as_gateway, limited, NamespacedName(team, "limited"))


@pytest.mark.parametrize(
    ("user", "groups"),
    [
        ("kubernetes-admin", ()),
        ("system:kube-controller-manager", ()),
        ("system:serviceaccount:TEAM:ann", ("system:masters",)),
        ("system:serviceaccount:TEAM-system:espalier-operator", ()),
    ],
)
async def test_a_gateway_that_was_taken_over_acts_for_nobody_above_a_served_namespace(
    as_gateway: KubernetesCluster, team: str, user: str, groups: tuple[str, ...]
) -> None:
    acting = as_gateway.acting_for(user.replace("TEAM", team), groups, manager="x")
    with pytest.raises(ClusterError, match="cannot impersonate"):
        await acting.create("TrainableModel", named(team, "taken"))


async def test_a_head_that_was_moved_says_for_whom_until_somebody_else_edits_it(
    apiserver: ApiServer, as_gateway: KubernetesCluster, team: str
) -> None:
    user, head = account(team, "ann"), ObjectKey("CheckpointHead", team, "moved")
    await forked(as_gateway, user, NamespacedName(team, "moved"))
    for mode in ({"mode": "Pin", "checkpointRef": {"name": "moved-000001"}}, {"mode": "Track"}):
        live = await as_gateway.get(head)
        assert live is not None
        await acting_for(as_gateway, user).replace("CheckpointHead", edited(live, mode, user))
        live = await as_gateway.get(head)
        assert live is not None
        by = editor(live["metadata"])
        assert by is not None
        assert (by.manager, by.user) == (GATEWAY_MANAGER, user.name)
    patch = ("patch", "checkpointhead", "moved", "-n", team, "--type=merge", "-p")

    def forged() -> str:
        lie = json.dumps({"metadata": {"annotations": {REQUESTED_BY: "eve"}}})
        try:
            # Not as the administrator: who may impersonate eve may write her name.
            return apiserver.kubectl(*patch, lie, "--dry-run=server", f"--as={user.name}")
        except ApiServerError as error:
            return str(error)

    # A policy is in force a moment after it was made.
    apiserver.wait_for(
        "the name of another to be refused",
        lambda: "may not write the name of another" in forged(),
    )
    apiserver.kubectl(
        *patch, json.dumps({"spec": {"mode": "Pin", "checkpointRef": {"name": "moved-000002"}}})
    )
    live = await as_gateway.get(head)
    assert live is not None
    assert live["metadata"]["annotations"][REQUESTED_BY] == user.name
    by = editor(live["metadata"])
    assert by is not None
    assert (by.manager, by.user) == ("kubectl-patch", "")


async def test_a_head_is_created_without_the_name_of_another_but_from_a_backup(
    apiserver: ApiServer, as_gateway: KubernetesCluster, team: str
) -> None:
    await forked(as_gateway, account(team, "ann"), NamespacedName(team, "source"))

    def create(name: str, by: str, *how: str) -> str:
        meta = {"name": name, "namespace": team, "annotations": {REQUESTED_BY: by}}
        spec = {"modelRef": {"name": "source"}, "mode": "Track"}
        head = {"apiVersion": API_VERSION, "kind": "CheckpointHead", "metadata": meta, "spec": spec}
        try:
            return apiserver.kubectl("create", "-f", "-", *how, stdin=json.dumps(head))
        except ApiServerError as error:
            return str(error)

    ann = account(team, "ann").name
    as_ann = (f"--as={ann}", "--as-group=system:serviceaccounts", "--dry-run=server")
    apiserver.wait_for(
        "the name of another to be refused",
        lambda: "may not write the name of another" in create("made", "eve", *as_ann),
    )
    assert "created" in create("made", ann, *as_ann)
    # Whoever may act as everybody restores a backup as it was.
    assert "created" in create("made", "eve")


def named(namespace: str, name: str) -> Body:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": SPEC}
