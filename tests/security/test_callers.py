"""Who a caller is and what it may do, against a real API server."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from dataclasses import replace

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from dev.apiserver import ApiServer
from tests.gateway.conftest import Users, token
from tests.gateway.world import World, controlled_by
from tests.security.test_tokens import Claims, raw

from espalier.core.names import GATEWAY_AUDIENCE, RUNNER_ACCOUNT
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.own_run import POD_NAME, POD_UID, OwnRun
from espalier.gateway.access.rights import SAMPLE
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.world import NamespacedName
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cluster import Extra

# All runners of a namespace may do this; the chart grants the same.
RUNNERS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: espalier-runner}
rules:
- {apiGroups: [espalier.dev], resources: [trainablemodels], verbs: [get]}
- {apiGroups: [espalier.dev], resources: [trainablemodels/sample], verbs: [create]}
- {apiGroups: [espalier.dev], resources: [trainingruns], verbs: [get, update]}
- {apiGroups: [espalier.dev], resources: [checkpoints], verbs: [evaluate]}
"""


async def test_a_token_of_the_api_servers_own_audience_is_taken_only_where_that_is_set(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster
) -> None:
    text = f"Bearer {token(apiserver, users.namespace, 'trainer')}"
    with pytest.raises(RefusalError) as refused:
        await Authenticator(cluster).user(text)
    assert (refused.value.status, refused.value.reason) == (401, "TokenRefused")
    assert f"--audience {GATEWAY_AUDIENCE}" in refused.value.remedy
    user = await Authenticator(cluster, api_server_tokens=True).user(text)
    assert user.name == f"system:serviceaccount:{users.namespace}:trainer"


def by_hmac(claims: Claims, key: str, head: Claims) -> str:
    public = load_pem_private_key(key.encode(), None).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return raw(head | {"alg": "HS256"}, claims, lambda text: hmac.digest(pem, text, "sha256"))


def signed(claims: Claims, key: str, head: Claims) -> str:
    return jwt.encode(claims, key, algorithm="ES256", headers=head)


LONG_AGO = 1_000_000_000
FORGED: dict[str, tuple[Callable[[Claims, str, Claims], str], Claims]] = {
    "expired": (signed, {"iat": LONG_AGO, "nbf": LONG_AGO, "exp": LONG_AGO + 600}),
    "of another issuer": (signed, {"iss": "https://kubernetes.default.svc"}),
    "of an account that was deleted": (signed, {"uid": "00000000-0000-0000-0000-000000000000"}),
    "without an algorithm": (
        lambda claims, _, head: raw(head | {"alg": "none"}, claims, lambda _: b""),
        {},
    ),
    "by HMAC with the public key": (by_hmac, {}),
    "by another key": (
        lambda claims, _, head: raw(head | {"alg": "ES256"}, claims, lambda _: b"1" * 64),
        {},
    ),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_users_token_that_is_forged_or_old_is_nobodys(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster, name: str
) -> None:
    key = (apiserver.directory / "sa.key").read_text()
    head = {"kid": jwt.get_unverified_header(users.trainer)["kid"]}
    claims = jwt.decode(users.trainer, options={"verify_signature": False})
    # What they are forged from is taken.
    user = await Authenticator(cluster).user(f"Bearer {signed(claims, key, head)}")
    assert user.name == f"system:serviceaccount:{users.namespace}:trainer"
    forge, changes = FORGED[name]
    if "uid" in changes:
        about = claims["kubernetes.io"]
        changes = {"kubernetes.io": about | {"serviceaccount": about["serviceaccount"] | changes}}
    with pytest.raises(RefusalError) as refused:
        await Authenticator(cluster).user(f"Bearer {forge(claims | changes, key, head)}")
    assert (refused.value.status, refused.value.reason) == (401, "TokenRefused")


async def test_a_review_carries_uid_groups_and_extra_of_the_user(
    users: Users, cluster: KubernetesCluster
) -> None:
    asked = []

    class Asked(KubernetesCluster):
        async def _review(
            self, group: str, kind: str, spec: dict[str, object]
        ) -> dict[str, object]:
            asked.append((kind, spec))
            return await super()._review(group, kind, spec)

    async with await Asked.connect() as listening:
        auth = Authenticator(listening)
        user = await auth.user(f"Bearer {users.reader}")
        target = NamespacedName(users.namespace, "arith")
        assert await auth.allowed(user, "get", "trainablemodels", target)
        # Who has the right by a group alone has it too, and who lost the group has not.
        assert not await auth.allowed(
            replace(user, name="nobody", groups=()), "get", "trainablemodels", target
        )
    assert user.uid
    assert "authentication.kubernetes.io/credential-id" in dict(user.extra)
    spec = next(spec for kind, spec in asked if kind == "SubjectAccessReview")
    assert spec["uid"] == user.uid
    assert spec["groups"] == [*user.groups]
    assert spec["extra"] == {key: [*values] for key, values in user.extra}


def runner_pod(server: ApiServer, namespace: str) -> tuple[str, str]:
    """Name and uid of a pod on the API server that the runners' account may act for."""
    server.kubectl("create", "serviceaccount", RUNNER_ACCOUNT, "-n", namespace)
    server.kubectl("apply", "-n", namespace, "-f", "-", stdin=RUNNERS)
    server.kubectl(
        *("create", "rolebinding", RUNNER_ACCOUNT, "-n", namespace, f"--role={RUNNER_ACCOUNT}"),
        f"--serviceaccount={namespace}:{RUNNER_ACCOUNT}",
    )
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "mine-runner-x"},
        "spec": {
            "serviceAccountName": RUNNER_ACCOUNT,
            "containers": [{"name": "runner", "image": "x"}],
        },
    }
    made = server.kubectl("create", "-n", namespace, "-o", "json", "-f", "-", stdin=json.dumps(pod))
    return "mine-runner-x", json.loads(made)["metadata"]["uid"]


def two_runs(world: World, pod: str, uid: str, *, role: str = "runner") -> None:
    """Two models, each with a run and a checkpoint; the pod drives the first run."""
    for name in ("mine", "other"):
        model = world.model(name)
        world.run(model, name)
        world.checkpoint(model, f"{name}-000001", "sha256:" + "a1" * 32)
    labels = {"espalier.dev/model": "mine", "espalier.dev/run": "mine", "espalier.dev/role": role}
    job = controlled_by("espalier.dev/v1alpha1", "TrainingRun", "mine")
    world.put("Job", "mine-runner", metadata={"labels": labels, "ownerReferences": [job]}, spec={})
    owner = controlled_by("batch/v1", "Job", "mine-runner")
    metadata = {"labels": labels, "ownerReferences": [owner], "uid": uid}
    world.put("Pod", pod, metadata=metadata, spec={}, status={"podIP": "10.0.0.9"})


async def test_a_runners_token_trains_and_evaluates_its_own_run_and_no_other(
    apiserver: ApiServer, users: Users, cluster: KubernetesCluster
) -> None:
    namespace = users.namespace
    pod, uid = runner_pod(apiserver, namespace)
    world = World(namespace)
    two_runs(world, pod, uid)
    auth = Authenticator(cluster, own_run=OwnRun(world.view))
    bound = apiserver.kubectl(
        *("create", "token", RUNNER_ACCOUNT, "-n", namespace, f"--audience={GATEWAY_AUDIENCE}"),
        *("--bound-object-kind=Pod", f"--bound-object-name={pod}", f"--bound-object-uid={uid}"),
    ).strip()
    unbound = token(apiserver, namespace, RUNNER_ACCOUNT, GATEWAY_AUDIENCE)
    runner, loose = [await auth.user(f"Bearer {text}") for text in (bound, unbound)]
    mine, other = NamespacedName(namespace, "mine"), NamespacedName(namespace, "other")
    rights = [
        ("update", "trainingruns", mine, other),
        ("get", "trainingruns", mine, other),
        ("evaluate", "checkpoints", mine.beside("mine-000001"), other.beside("other-000001")),
    ]
    for verb, resource, own, foreign in rights:
        await auth.require(runner, verb, resource, own)
        for user, target in ((runner, foreign), (loose, own), (loose, foreign)):
            assert not await auth.allowed(user, verb, resource, target)
            with pytest.raises(RefusalError) as refused:
                await auth.require(user, verb, resource, target)
            assert (refused.value.status, refused.value.reason) == (403, "NotOwnRun")
    # A reward may be a model, so it samples what its account may.
    assert await auth.allowed(runner, *SAMPLE, other)


@pytest.mark.parametrize(
    ("role", "uid", "extra"),
    [
        ("rollout", "uid-1", ((POD_NAME, ("p",)), (POD_UID, ("uid-1",)))),
        ("runner", "uid-2", ((POD_NAME, ("p",)), (POD_UID, ("uid-1",)))),
        ("runner", "uid-1", ((POD_NAME, ("q",)), (POD_UID, ("uid-1",)))),
        ("runner", "uid-1", ((POD_NAME, ("p",)),)),
        ("runner", "", ((POD_NAME, ("p",)), (POD_UID, ("",)))),
    ],
    ids=["another role", "its predecessor", "another pod", "no uid", "an empty uid"],
)
def test_a_token_of_no_runners_pod_is_for_no_run(role: str, uid: str, extra: Extra) -> None:
    world = World()
    two_runs(world, "p", uid, role=role)
    user = User(f"system:serviceaccount:home:{RUNNER_ACCOUNT}", (), extra=extra)
    refusal = OwnRun(world.view).refusal
    said = refusal(user.name, user.extra, "update", "trainingruns", NamespacedName("home", "mine"))
    assert "the token is of no runner's pod" in said


def test_a_runner_of_another_namespace_is_kept_to_that_one() -> None:
    world = World()
    two_runs(world, "p", "uid-1")
    extra = ((POD_NAME, ("p",)), (POD_UID, ("uid-1",)))
    target = NamespacedName("home", "mine")
    refusal = OwnRun(world.view).refusal
    account = f"system:serviceaccount:%s:{RUNNER_ACCOUNT}"
    assert not refusal(account % "home", extra, "update", "trainingruns", target)
    assert refusal(account % "away", extra, "update", "trainingruns", target)
    # Any other account has what RBAC gives it.
    assert not refusal("ann", (), "update", "trainingruns", target)
