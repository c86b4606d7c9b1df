"""A Prometheus in a cluster, where the pods are: for the end-to-end tests and for pictures.

    python -m dev.monitoring.in_cluster up     runs it, in the namespace monitoring
    python -m dev.monitoring.in_cluster url    forwards it to this machine until it is interrupted
    python -m dev.monitoring.in_cluster down

It is the program that dev/tools.sh builds, copied into a pod of the operator's image: no registry
has to be reached. It scrapes as the PodMonitors of the installed chart say.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dev.apiserver import BINARIES, ROOT, end_processes
from dev.monitoring.pod_monitors import KNOWN, scrape_configs
from dev.monitoring.prometheus import Prometheus, tool

from espalier.identity import SCRAPE_TOKEN_FIELD, SCRAPE_TOKEN_SECRET

NAMESPACE, NAME = "monitoring", "espalier-test-prometheus"
SYSTEM = "espalier-system"
PORT = 9090
INTERVAL = "2s"
RULES = ROOT / "charts" / "espalier" / "files" / "alerts.yaml"
WAIT = "until [ -e /data/copied ]; do sleep 0.2; done"
RUN = (
    "exec /data/prometheus --config.file=/etc/prometheus/prometheus.yaml "
    "--storage.tsdb.path=/data/series"
)


class InCluster:
    """Prometheus in the cluster of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    def up(self, interval: str = INTERVAL) -> None:
        """Runs it, in place of one that ran before."""
        self.down()
        image, monitors, token = self._image(), self._monitors(), self._token()
        discovery = {"kubernetes_sd_configs": [{"role": "pod"}]}
        config = {
            "global": {"evaluation_interval": interval},
            "scrape_configs": list(
                scrape_configs(monitors, {"credentials": token}, discovery, interval)
            ),
            "rule_files": ["/etc/prometheus/alerts.yaml"],
        }
        files = {"prometheus.yaml": yaml.safe_dump(config), "alerts.yaml": RULES.read_text()}
        self._kubectl("apply", "-f", "-", given=yaml.safe_dump_all(_objects(image, files)))
        pod = f"pod/{NAME}"
        self._kubectl("wait", pod, "--for=jsonpath={.status.phase}=Running", "--timeout=120s")
        self._kubectl("cp", str(tool("prometheus")), f"{NAME}:/data/prometheus")
        self._kubectl("exec", NAME, "--", "touch", "/data/copied")
        self._kubectl("wait", pod, "--for=condition=Ready", "--timeout=120s")

    def down(self) -> None:
        """Removes it."""
        # Not the namespace: in a cluster of others it may be theirs.
        for kinds in ("pod,secret,serviceaccount", "clusterrole,clusterrolebinding"):
            self._kubectl("delete", kinds, NAME, "--ignore-not-found", "--timeout=120s")

    @contextmanager
    def forwarded(self) -> Iterator[Prometheus]:
        """It, as this machine reaches it."""
        process = subprocess.Popen(
            [*self._command(), "port-forward", f"pod/{NAME}", f":{PORT}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            port = process.stdout.readline().split("127.0.0.1:")[1].split()[0]
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            end_processes([("port-forward", process)])  # type: ignore[list-item]

    def _image(self) -> str:
        path = "jsonpath={.spec.template.spec.containers[0].image}"
        return self._kubectl("get", "deployment/espalier-operator", "-o", path, namespace=SYSTEM)

    def _token(self) -> str:
        path = f"jsonpath={{.data.{SCRAPE_TOKEN_FIELD}}}"
        kept = self._kubectl("get", "secret", SCRAPE_TOKEN_SECRET, "-o", path, namespace=SYSTEM)
        return base64.b64decode(kept).decode()

    def _monitors(self) -> list[dict[str, Any]]:
        """The PodMonitors that this installation would have beside the Prometheus Operator."""
        values = self._helm("get", "values", "espalier", "--output", "json")
        known = [f"--api-versions={kind}" for kind in KNOWN]
        chart = str(ROOT / "charts" / "espalier")
        show = ("--show-only", "templates/monitoring.yaml", "--kube-version", "1.35.0")
        text = self._helm("template", "espalier", chart, *known, *show, "-f", "-", given=values)
        return [one for one in yaml.safe_load_all(text) if one and one["kind"] == "PodMonitor"]

    def _helm(self, *arguments: str, given: str = "") -> str:
        return _output(
            [str(BINARIES / "helm"), "--namespace", SYSTEM, *arguments], self._environment(), given
        )

    def _kubectl(self, *arguments: str, namespace: str = NAMESPACE, given: str = "") -> str:
        return _output([*self._command(namespace), *arguments], self._environment(), given)

    def _command(self, namespace: str = NAMESPACE) -> list[str]:
        kubectl = [str(BINARIES / "kubectl"), "--kubeconfig", str(self._kubeconfig)]
        return [*kubectl, "--namespace", namespace]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self._kubeconfig)}


def _output(command: list[str], environment: dict[str, str], given: str) -> str:
    done = subprocess.run(
        command,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def _objects(image: str, files: dict[str, str]) -> list[dict[str, Any]]:
    here = {"name": NAME, "namespace": NAMESPACE}
    reads = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        {"apiVersion": "v1", "kind": "Secret", "metadata": here, "stringData": files},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": NAME},
            "rules": [reads],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", **here}],
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": here,
            "spec": {
                "serviceAccountName": NAME,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532},
                "containers": [
                    {
                        "name": "prometheus",
                        "image": image,
                        "command": ["sh", "-c", f"{WAIT}; {RUN}"],
                        "ports": [{"containerPort": PORT}],
                        "readinessProbe": {
                            "httpGet": {"path": "/-/ready", "port": PORT},
                            "periodSeconds": 1,
                        },
                        "volumeMounts": [
                            {"name": "data", "mountPath": "/data"},
                            {"name": "config", "mountPath": "/etc/prometheus"},
                        ],
                    }
                ],
                "volumes": [
                    {"name": "data", "emptyDir": {}},
                    {"name": "config", "secret": {"secretName": NAME}},
                ],
            },
        },
    ]


def main() -> None:
    cluster = InCluster(Path(os.environ.get("KUBECONFIG") or BINARIES.parent / "kubeconfig"))
    match sys.argv[1:]:
        case ["up"]:
            cluster.up()
        case ["down"]:
            cluster.down()
        case ["url"]:
            with cluster.forwarded() as found:
                print(
                    json.dumps({"url": found.url, "targets": found.targets()}, indent=1), flush=True
                )
                sys.stdin.read()
        case _:
            sys.exit("usage: python -m dev.monitoring.in_cluster up | url | down")


if __name__ == "__main__":
    main()
