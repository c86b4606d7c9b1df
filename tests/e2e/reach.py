"""Pods that try to connect to each other, as network policies would have it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from tests.e2e.kubectl import Kubectl, Object

# No controller of ours made the pod, so nobody sends it anything; policies go by labels alone.
CONTROLLER = "system:serviceaccount:kube-system:job-controller"
PORTS = (80, 443, 8000, 8080, 9000)
CONNECT = """
import concurrent.futures, json, socket, sys
def attempt(target):
    host, port = target
    try:
        socket.create_connection((host, port), timeout=3).close()
        return "open"
    except TimeoutError:
        return "timed out"
    except ConnectionRefusedError:
        return "refused"
targets = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps([*pool.map(attempt, targets)]))
"""
# A pod that listens on all of these. Ports below 1024 take no capability: the sysctl says so.
LISTEN = """
import selectors, socket
waiting = selectors.DefaultSelector()
for port in %s:
    waiting.register(socket.create_server(("", port)), selectors.EVENT_READ)
while True:
    for key, _ in waiting.select():
        key.fileobj.accept()[0].close()
"""


@dataclass(frozen=True)
class End:
    """A pod that connects and is connected to; ``of`` calls kubectl in its namespace."""

    of: Kubectl
    pod: str

    def address(self) -> str:
        """Its IP."""
        found: str = self.of.get("pod", self.pod)["status"]["podIP"]
        return found

    def connects(self, targets: Collection[tuple[str, int]]) -> list[str]:
        """What comes of a connection from it to each: open, timed out or refused."""
        listed = json.dumps([*targets])
        answers = self.of("exec", self.pod, "--", "python", "-c", CONNECT, listed)
        found: list[str] = json.loads(answers)
        return found


def listener(name: str, image: str, role: str = "") -> Object:
    """A pod without credentials that listens on PORTS, with the label of a role of ours or none."""
    container = {
        "name": "listener",
        "image": image,
        "command": ["python", "-c", LISTEN % (PORTS,)],
        "readinessProbe": {"tcpSocket": {"port": PORTS[-1]}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app": name} | ({"espalier.dev/role": role} if role else {}),
        },
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
            },
            "containers": [container],
        },
    }


def start(kubectl: Kubectl, *pods: Object) -> list[End]:
    """Makes the pods, as a controller of Kubernetes, and waits until they listen."""
    names = [pod["metadata"]["name"] for pod in pods]
    kubectl("delete", "pod", *names, "--ignore-not-found", "--timeout=60s", timeout=90)
    items = {"apiVersion": "v1", "kind": "List", "items": [*pods]}
    kubectl("create", "-f", "-", f"--as={CONTROLLER}", stdin=json.dumps(items))
    kubectl("wait", "pod", *names, "--for=condition=Ready", "--timeout=120s", timeout=150)
    return [End(kubectl, name) for name in names]
