"""Where the command line keeps API keys: a Secret of the namespace, or a file of espalier dev."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from espalier.cli.dev_state import LocalObjects
from espalier.cli.failure import CliError
from espalier.cli.kubectl import Kubectl
from espalier.core.api_keys import SECRET, SECRET_TYPE
from espalier.core.manifests.labels import MANAGED_BY, MANAGER
from espalier.local.key_file import KeyFile

TRIES = 3
Entries = Mapping[str, str]


class KeyStore(Protocol):
    """The entries of the keys by name."""

    def read(self) -> Entries:
        """The entries as they are."""

    def change(self, by: Callable[[Entries], Entries]) -> None:
        """Puts other entries in place of these; asked again if somebody else was faster."""

    def account_uid(self, account: str) -> str:
        """The uid of a service account of which the user may make tokens.

        Raises:
            CliError: there is none, or the user may not.
        """


def key_store(objects: Kubectl) -> KeyStore:
    """The keys that are beside these objects."""
    if isinstance(objects, LocalObjects):
        return _FileStore(KeyFile(objects.api_keys))
    return _SecretStore(objects)


class _FileStore:
    def __init__(self, file: KeyFile) -> None:
        self.read = file.read
        self.change = file.change

    def account_uid(self, account: str) -> str:
        """See KeyStore: one machine has no service accounts, and their names are names alone."""
        del account
        return ""


class _SecretStore:
    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl

    def read(self) -> Entries:
        """See KeyStore."""
        return _entries(self._secret())

    def change(self, by: Callable[[Entries], Entries]) -> None:
        """See KeyStore."""
        for attempt in range(1, TRIES + 1):
            secret = self._secret()
            entries = by(_entries(secret))
            try:
                self._write(secret, entries)
            except CliError as error:
                if error.kind != "conflict" or attempt == TRIES:
                    raise
            else:
                return

    def account_uid(self, account: str) -> str:
        """See KeyStore."""
        uid = self._kubectl.raw("serviceaccounts", account)["metadata"]["uid"]
        namespace = self._kubectl.namespace()
        asked = {"verb": "create", "resource": "serviceaccounts", "subresource": "token"}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**asked, "namespace": namespace, "name": account}},
        }
        answer = self._ask(review)
        if not json.loads(answer)["status"]["allowed"]:
            raise CliError(
                f"a key acts as its service account, and you may make no token of {account}",
                "permission_denied",
                f"Grant create on serviceaccounts/token with resourceNames [{account}] in "
                f"namespace {namespace}",
            )
        return str(uid)

    def _ask(self, review: dict[str, Any]) -> str:
        # Not validated by kubectl, which would list CRDs for it, and who issues keys may not.
        options = ("-f", "-", "-o", "json", "--validate=false")
        return self._kubectl.call("create", *options, stdin=json.dumps(review))

    def _secret(self) -> dict[str, Any]:
        """The Secret; empty if there is none."""
        if not self._kubectl.exists("secrets", SECRET):
            return {}
        return self._kubectl.raw("secrets", SECRET)

    def _write(self, secret: Mapping[str, Any], entries: Entries) -> None:
        before = _entries(secret)
        changed = {
            name: base64.b64encode(text.encode()).decode()
            for name, text in entries.items()
            if before.get(name) != text
        }
        if not secret:
            self._kubectl.create(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "type": SECRET_TYPE,
                    "metadata": {"name": SECRET, "labels": {MANAGED_BY: MANAGER}},
                    "data": changed,
                }
            )
            return
        gone = dict.fromkeys(before.keys() - entries.keys())
        # The version makes it a conflict if somebody else has written meanwhile.
        version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
        self._kubectl.patch("secrets", SECRET, {"metadata": version, "data": {**changed, **gone}})


def _entries(secret: Mapping[str, Any]) -> Entries:
    data: Mapping[str, str] = secret.get("data") or {}
    return {name: base64.b64decode(value).decode(errors="replace") for name, value in data.items()}
