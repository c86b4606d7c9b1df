"""Signing keys are replaced on a real API server while tokens are signed and checked."""

from __future__ import annotations

import base64
import json
import os
import uuid
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from dev.apiserver import ApiServer, ApiServerError
from tests.api.test_chart import VALUES, render

from espalier import identity
from espalier.controllers.process.signing_key import ROTATE, SigningKeyError, SigningKeys
from espalier.core.key_ring import OVERLAP_SECONDS, PUBLISHED_SECONDS
from espalier.identity import (
    GATEWAY_KEY_SECRET,
    OPERATOR_KEY_SECRET,
    SCRAPE_TOKEN_SECRET,
    PublicKeys,
)
from espalier.key_file import LOOK_SECONDS, KeyFile
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.objects import ObjectKey
from espalier.trainer.http.service import SERVER, Service

AUDIENCE = "team/arith/trainer/uid-1"
DAY = 86_400.0


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


async def believed(cluster: KubernetesCluster, namespace: str) -> PublicKeys:
    """What a pod that starts now would mount."""
    found = await cluster.get(ObjectKey("ConfigMap", namespace, "espalier-public-keys"))
    assert found is not None
    return PublicKeys.read(found["data"]["keys.json"])


def own_and_served(apiserver: ApiServer, prefix: str) -> tuple[str, str]:
    """Two namespaces: the operator's own, and one that it serves."""
    system, team = (f"{prefix}-{uuid.uuid4().hex[:8]}" for _ in range(2))
    for namespace in (system, team):
        apiserver.create_namespace(namespace)
    return system, team


async def held_by_prometheus(cluster: KubernetesCluster, namespace: str) -> str:
    found = await cluster.get(ObjectKey("Secret", namespace, SCRAPE_TOKEN_SECRET))
    assert found is not None
    return base64.b64decode(found["data"]["token"]).decode()


async def test_an_annotation_rotates_a_key_and_no_call_is_refused_meanwhile(
    apiserver: ApiServer, cluster: KubernetesCluster
) -> None:
    system, team = own_and_served(apiserver, "rotation")
    clock = Clock()
    keys = SigningKeys(cluster, system, (team,), 90 * DAY, clock)
    await keys.turn()
    first = keys.signer.private_key
    pods = [await believed(cluster, team)]
    scrapes = [await held_by_prometheus(cluster, system)]

    def passes(seen: PublicKeys, key: str) -> bool:
        try:
            token = identity.issue(key, "operator", AUDIENCE)
            return identity.verify(seen, f"Bearer {token}", AUDIENCE).subject == "operator"
        except identity.IdentityError:
            return False

    await keys.turn()
    pods.append(await believed(cluster, team))
    where = ("-n", system, "secret", OPERATOR_KEY_SECRET)
    apiserver.kubectl("annotate", *where, f"{ROTATE}=leaked-on-monday")
    clock.now += PUBLISHED_SECONDS
    # As it turns, a pod that saw the keys of before is told nothing yet.
    await keys.turn()
    pods.append(await believed(cluster, team))
    second = keys.signer.private_key
    assert second != first
    assert all(passes(seen, second) for seen in pods[1:])
    # Prometheus has a new token at once; the one before opens metrics until everybody has that.
    scrapes.append(await held_by_prometheus(cluster, system))
    assert scrapes[0] != scrapes[1]
    for token in scrapes:
        identity.verify_scraper(pods[2], f"Bearer {token}")
    assert passes(pods[2], first)
    # A new leader finds what this one left.
    heir = SigningKeys(cluster, system, (team,), 90 * DAY, clock)
    await heir.turn()
    assert heir.signer.private_key == second
    clock.now += OVERLAP_SECONDS
    await heir.turn()
    last = await believed(cluster, team)
    assert await held_by_prometheus(cluster, system) == scrapes[1]
    with pytest.raises(identity.IdentityError):
        identity.verify_scraper(last, f"Bearer {scrapes[0]}")
    assert passes(last, second)
    assert not passes(last, first)
    # The gateway's own key was not asked for, and stays.
    assert last.gateway == pods[1].gateway


async def test_a_secret_without_a_key_and_a_changed_configmap_are_found(
    apiserver: ApiServer, cluster: KubernetesCluster
) -> None:
    system, team = own_and_served(apiserver, "rotation")
    keys = SigningKeys(cluster, system, (team, "nowhere"), 90 * DAY, Clock())
    await keys.turn()
    good = await believed(cluster, team)
    forged = PublicKeys.of(identity.generate_private_key(), identity.generate_private_key())
    patch = json.dumps({"data": {"keys.json": forged.text()}})
    apiserver.kubectl("patch", "-n", team, "configmap", "espalier-public-keys", "-p", patch)
    await keys.turn()
    assert (await believed(cluster, team)).gateway == good.gateway
    empty = json.dumps({"data": {"private.pem": None}})
    apiserver.kubectl("patch", "-n", system, "secret", GATEWAY_KEY_SECRET, "-p", empty)
    with pytest.raises(SigningKeyError, match=r"espalier-gateway-key has no private\.pem"):
        await keys.turn()


async def test_a_token_of_scrapes_that_cannot_be_renewed_holds_up_no_key(
    apiserver: ApiServer, cluster: KubernetesCluster
) -> None:
    system, team = own_and_served(apiserver, "rotation")
    held = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SCRAPE_TOKEN_SECRET, "namespace": system},
        "immutable": True,
        "stringData": {"token": "old"},
    }
    apiserver.kubectl("create", "-f", "-", stdin=json.dumps(held))
    keys = SigningKeys(cluster, system, (team,), 90 * DAY, Clock())
    await keys.turn()
    assert (await believed(cluster, team)).operator
    assert await held_by_prometheus(cluster, system) == "old"


def test_nobody_but_the_operator_says_whose_tokens_pods_believe(apiserver: ApiServer) -> None:
    system, team = (f"keys-{uuid.uuid4().hex[:8]}" for _ in range(2))
    text = render(*VALUES[:-1], f"namespaces={{{team}}}", "crds.install=false")
    text = text.replace("chart-system", system)
    for namespace in (system, team):
        apiserver.create_namespace(namespace)
    apiserver.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    operator = f"system:serviceaccount:{system}:espalier-operator"
    apiserver.kubectl("create", "rolebinding", "ed", "-n", team, "--clusterrole=edit", "--user=ed")
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "espalier-public-keys"}}
    body = json.dumps({**made, "data": {"keys.json": "forged"}})

    def attempt(*command: str, user: str, stdin: str | None = None) -> str:
        try:
            return apiserver.kubectl(*command, "-n", team, "--as", user, stdin=stdin)
        except ApiServerError as error:
            return str(error)

    said = "ed may not change it"
    apiserver.wait_for(
        "the policy to be enforced",
        lambda: said in attempt("create", "--dry-run=server", "-f", "-", user="ed", stdin=body),
    )
    assert "serverside-applied" in attempt(
        *("apply", "--server-side", "-f", "-"), user=operator, stdin=body
    )
    patch = '{"data": {"keys.json": "mine"}}'
    assert said in attempt("patch", "configmap", "espalier-public-keys", "-p", patch, user="ed")
    assert said in attempt("delete", "configmap", "espalier-public-keys", user="ed")
    assert said in attempt("delete", "configmap", "--all", user="ed")
    assert "created" in attempt("create", "configmap", "another", user="ed")
    # A namespace can be deleted with what is in it.
    apiserver.kubectl("delete", "namespace", team, "--wait=false")


async def test_a_running_trainer_believes_a_new_key_without_a_restart(tmp_path: Path) -> None:
    old, new = identity.generate_private_key(), identity.generate_private_key()
    path, clock = tmp_path / "keys.json", Clock()

    def mount(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        os.replace(fresh, path)  # noqa: PTH105 as the kubelet does
        clock.now += LOOK_SECONDS

    mount(PublicKeys.of(old, old).text())
    service = Service(KeyFile(path, clock), AUDIENCE)
    server = TestServer(service.app())
    await server.start_server(**SERVER)
    async with TestClient(server) as client:

        async def status(key: str, subject: identity.Subject = "gateway") -> int:
            bearer = f"Bearer {identity.issue(key, subject, AUDIENCE)}"
            answer = await client.get("/train/state", headers={"Authorization": bearer})
            return answer.status

        # It is loading: who is believed is told so.
        assert (await status(old), await status(new)) == (503, 401)
        both = PublicKeys(
            operator=(identity.public_key(old),),
            gateway=(identity.public_key(new), identity.public_key(old)),
        )
        mount(both.text())
        assert (await status(old), await status(new)) == (503, 503)
        # Neither becomes the other by knowing a key of it.
        assert (await status(new, "operator"), await status(old, "operator")) == (401, 503)
        mount("nonsense")
        assert await status(new) == 503
        mount(PublicKeys.of(new, new).text())
        assert (await status(old), await status(new)) == (401, 503)
        path.unlink()
        clock.now += LOOK_SECONDS
        assert await status(new) == 503


def test_a_file_without_keys_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keys\.json cannot be read"):
        KeyFile(tmp_path / "keys.json")
    (tmp_path / "keys.json").write_text('{"operator": [], "gateway": ["PEM"]}')
    with pytest.raises(ValueError, match="each a list of PEMs"):
        KeyFile(tmp_path / "keys.json")
