"""espalier keys against a real API server, through kubectl, as users of the namespace."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.apiserver import BINARIES, ApiServer
from typer.testing import CliRunner, Result

from espalier.cli.key_store import Entries, key_store
from espalier.cli.kubectl import Kubectl
from espalier.cli.main import app
from espalier.gateway.access.api_keys import Admitted, ApiKeys
from espalier.gateway.access.key_source import ClusterKeys
from espalier.gateway.problems import RefusalError
from espalier.kube.apiserver import KubernetesCluster

Command = Callable[..., Result]
ISSUER = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: issuer}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [get, create, patch]}
- {apiGroups: [""], resources: [serviceaccounts], verbs: [get, list]}
- {apiGroups: [""], resources: [serviceaccounts/token], resourceNames: [bot], verbs: [create]}
"""


@pytest.fixture
def keys(apiserver: ApiServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``espalier keys`` as the administrator; there are service accounts bot and boss."""
    for account in ("bot", "boss"):
        apiserver.kubectl("create", "serviceaccount", account, "-n", namespace)
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    monkeypatch.setenv("PATH", f"{BINARIES}:{os.environ['PATH']}")

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["-n", namespace, "keys", *arguments])

    return command


@pytest.fixture
def issuer(
    apiserver: ApiServer,
    namespace: str,
    keys: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Command:
    """The same as a user who may write Secrets, and make tokens of bot alone."""
    apiserver.kubectl("apply", "-n", namespace, "-f", "-", stdin=ISSUER)
    apiserver.kubectl("create", "serviceaccount", "ann", "-n", namespace)
    account = f"--serviceaccount={namespace}:ann"
    apiserver.kubectl("create", "rolebinding", "a", "-n", namespace, "--role=issuer", account)
    config: dict[str, Any] = yaml.safe_load(apiserver.kubeconfig.read_text())
    token = apiserver.kubectl("create", "token", "ann", "-n", namespace).strip()
    config["users"][0]["user"] = {"token": token}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return keys


async def admitted(namespace: str, key: str) -> Admitted:
    """Whom the gateway takes it for now."""
    async with await KubernetesCluster.connect() as cluster:
        return await ApiKeys(ClusterKeys(cluster), (namespace,)).admit(key)


async def test_a_key_is_printed_once_listed_without_its_secret_and_revoked(
    keys: Command, namespace: str
) -> None:
    made = keys("create", "ci", "--service-account", "bot", "--scope", "sample")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert key.startswith(f"tml-{namespace}-")
    assert f"acts as service account {namespace}/bot" in made.stderr
    found = await admitted(namespace, key)
    assert found == Admitted(namespace, "bot", frozenset({"sample"}), found.id)
    forever = ("--service-account", "boss", "--expires", "never", "--json")
    other = json.loads(keys("create", "boss", *forever).stdout)
    assert (await admitted(namespace, other["key"])).scopes is None

    # Made in the same second, they are by name.
    listed = {one["name"]: one for one in json.loads(keys("list", "--json").stdout)}
    first, second = listed["ci"], listed["boss"]
    assert (first["name"], first["account"], first["scope"]) == ("ci", "bot", "sample")
    assert (second["name"], second["expires"]) == ("boss", "never")
    shown = keys("list").output
    assert shown.splitlines()[0].split() == ["NAME", "ID", "ACCOUNT", "SCOPE", "CREATED", "EXPIRES"]
    assert key.rpartition("-")[2] not in shown

    assert keys("revoke", "ci").output == "revoked ci\n"
    with pytest.raises(RefusalError, match="ApiKeyUnknown"):
        await admitted(namespace, key)
    await admitted(namespace, other["key"])


def test_what_is_wrong_with_a_key_is_said_and_none_is_made(keys: Command) -> None:
    bot = ("--service-account", "bot")
    assert keys("create", "ci", *bot).exit_code == 0
    for arguments, said in (
        (("ci", *bot), "there is a key ci"),
        (("x", *bot, "--scope", "root"), "Give some of read, sample, train, promote"),
        (("x", *bot, "--expires", "30"), "such as 90m, 12h or 30d, or never"),
        (("x", "--service-account", "bott"), "Did you mean bot?"),
        (("x" * 64, *bot), "63 at most"),
    ):
        done = keys("create", *arguments)
        assert done.exit_code in (1, 2), done.output
        assert said in done.output
    assert "no key ic: nothing was revoked. There are: ci" in keys("revoke", "ic", "ci").output
    assert "Name them, or give --expired" in keys("revoke").output
    assert [row["name"] for row in json.loads(keys("list", "--json").stdout)] == ["ci"]


def test_keys_whose_time_is_over_are_revoked_together(keys: Command, namespace: str) -> None:
    for name in ("old", "new"):
        keys("create", name, "--service-account", "bot", "--expires", "1m")

    def aged(entries: Entries) -> Entries:
        return {
            entry: json.dumps(json.loads(text) | {"expires": "2026-01-01T00:00:00Z"})
            if '"old"' in text
            else text
            for entry, text in entries.items()
        }

    key_store(Kubectl(namespace)).change(aged)
    assert "(expired)" in keys("list").output
    assert keys("revoke", "--expired").output == "revoked old\n"


def test_only_who_may_make_tokens_of_an_account_issues_a_key_for_it(issuer: Command) -> None:
    done = issuer("create", "mine", "--service-account", "bot")
    assert done.exit_code == 0, done.output
    done = issuer("create", "theirs", "--service-account", "boss", "--json")
    assert done.exit_code == 1
    failure = json.loads(done.stdout)
    assert failure["error"] == "permission_denied"
    assert "you may make no token of boss" in failure["message"]
    assert "serviceaccounts/token with resourceNames [boss]" in failure["suggestion"]


def test_two_who_issue_at_once_lose_neither_key(keys: Command, namespace: str) -> None:
    store, calls = key_store(Kubectl(namespace)), []

    def late(entries: Entries) -> Entries:
        calls.append(time.monotonic())
        if len(calls) < 3:
            keys("create", f"between-{len(calls)}", "--service-account", "bot")
        return {**entries, "0123456789ab.bot": "{}"}

    store.change(late)
    assert len(calls) == 3
    assert len(store.read()) == 3
