"""Kueue as a plain process beside an API server, which asks its webhooks on the loopback.

It runs as installed by default, with the integrations of what Espalier launches. Built by
``dev/tools.sh kueue``.
"""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from dev.crds import wait_until_established
from dev.gitops import MANIFESTS, Controllers, GitOpsError, create_namespace
from dev.pki import Authority
from dev.ports import free_port

NAMESPACE = "kueue-system"
INTEGRATIONS = ("batch/job", "pod", "deployment", "statefulset")
# Of these groups its webhooks are asked; the kinds of others are not there.
GROUPS = ("", "apps", "batch", "kueue.x-k8s.io")
# What its own keeper of certificates looks for. What lasts longer than its 90 days it leaves as
# they are.
CERTIFICATE_LIFETIME = timedelta(days=365)
CA_NAME, CERTIFICATE_SECRET = "kueue-ca", "kueue-webhook-server-cert"
SERVICE = f"kueue-webhook-service.{NAMESPACE}.svc"
CONVERTED = ("localqueues", "clusterqueues", "workloads", "cohorts", "multikueueclusters")

Body = dict[str, Any]


class Kueue(Controllers):
    """Kueue, ready to admit; its queues are made by the tests."""

    tools = "kueue"

    def _begin(self) -> None:
        self._webhooks = free_port()
        authority = Authority(CA_NAME, CERTIFICATE_LIFETIME, rsa=True)
        self._trusted = base64.b64encode(authority.certificate_pem).decode()
        create_namespace(self.server.kubectl, NAMESPACE)
        self._apply(self._certificates(authority))
        crds = [self._crd(body) for body in _bodies(MANIFESTS / "kueue/bases")]
        self._apply(*crds)
        names = [f"crd/{body['metadata']['name']}" for body in crds]
        wait_until_established(self.server, *names)
        health = free_port()
        configuration = self.directory / "configuration.yaml"
        configuration.write_text(yaml.safe_dump(self._configuration(health)))
        # Before it starts: it waits until it has found them.
        self._apply(*(self._hooks(body) for body in _bodies(MANIFESTS / "kueue/manifests.yaml")))
        self._start("kueue", "kueue", f"--config={configuration}")
        self._wait_for_port("kueue's webhooks", self._webhooks)

    def _apply(self, *bodies: Body) -> None:
        text = yaml.safe_dump_all(bodies)
        self.server.kubectl("apply", "--server-side", "-f", "-", stdin=text)

    def _certificates(self, authority: Authority) -> Body:
        certificate, key = authority.issue(SERVICE, server=True, hosts=(SERVICE,))
        files = {"tls.crt": certificate, "tls.key": key}
        for name, content in files.items():
            (self.directory / name).write_bytes(content)
        files |= {"ca.crt": authority.certificate_pem, "ca.key": authority.key_pem}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": CERTIFICATE_SECRET, "namespace": NAMESPACE},
            "data": {name: base64.b64encode(text).decode() for name, text in files.items()},
        }

    def _client(self, path: str) -> Body:
        return {
            "url": f"https://127.0.0.1:{self._webhooks}{path}",
            "caBundle": self._trusted,
        }

    def _crd(self, body: Body) -> Body:
        if body["spec"]["names"]["plural"] in CONVERTED:
            webhook = {
                "clientConfig": self._client("/convert"),
                "conversionReviewVersions": ["v1"],
            }
            body["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
        return body

    def _hooks(self, body: Body) -> Body:
        body["metadata"]["name"] = f"kueue-{body['metadata']['name']}"
        body["webhooks"] = [
            {**hook, "clientConfig": self._client(hook["clientConfig"]["service"]["path"])}
            for hook in body["webhooks"]
            if all(group in GROUPS for rule in hook["rules"] for group in rule["apiGroups"])
        ]
        return body

    def _configuration(self, health: int) -> Body:
        return {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {
                "host": "127.0.0.1",
                "port": self._webhooks,
                "certDir": str(self.directory),
            },
            "leaderElection": {"leaderElect": False},
            "clientConnection": {"qps": 50, "burst": 100},
            "integrations": {"frameworks": [*INTEGRATIONS]},
            # A server of its own, which only `kubectl` would ask.
            "featureGates": {"VisibilityOnDemand": False},
        }


def _bodies(path: Path) -> list[Body]:
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files or not all(file.exists() for file in files):
        raise GitOpsError(f"no manifests of Kueue in {path}: run dev/tools.sh kueue")
    return [body for file in files for body in yaml.safe_load_all(file.read_text()) if body]


def queue(namespace: str, name: str, **quota: str) -> str:
    """A LocalQueue, and a ClusterQueue and flavor of its own with this quota, as JSON."""
    cluster = f"{namespace}-{name}"
    resources = [{"name": key, "nominalQuota": value} for key, value in quota.items()]
    flavors = [{"name": cluster, "resources": resources}]
    kinds: list[tuple[str, Body, Body]] = [
        ("ResourceFlavor", {"name": cluster}, {}),
        (
            "ClusterQueue",
            {"name": cluster},
            {
                "namespaceSelector": {},
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "resourceGroups": [{"coveredResources": [*quota], "flavors": flavors}],
            },
        ),
        ("LocalQueue", {"name": name, "namespace": namespace}, {"clusterQueue": cluster}),
    ]
    items = [
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": metadata, "spec": spec}
        for kind, metadata, spec in kinds
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
