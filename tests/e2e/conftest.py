"""The real cluster: kind, the chart, the tiny model. One namespace for the whole session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dev.monitoring.in_cluster import InCluster
from dev.monitoring.prometheus import Prometheus
from tests.e2e.gateway import Gateway
from tests.e2e.kubectl import Kubectl, is_true, until_ready
from tests.e2e.manifests import claim, model, run, tasks, user
from tests.e2e.run import SHOW, STEPS, kill

ROOT = Path(__file__).parents[2]
NAMESPACE = "espalier-e2e"
SYSTEM = "espalier-system"


def cache() -> Path:
    """Where the project's own targets keep tools, images and the kubeconfig."""
    return Path(os.environ.get("ESPALIER_CACHE", Path.home() / ".cache" / "espalier"))


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """Image references by name, as dev/image.sh built and pushed them."""
    path = cache() / "images.env"
    assert path.exists(), "no images: run make images"
    lines = [line for line in path.read_text().splitlines() if "=" in line]
    return {
        name.removeprefix("ESPALIER_IMAGE_").lower().replace("_", "-"): reference
        for name, reference in (line.split("=", 1) for line in lines)
    }


@pytest.fixture(scope="session")
def kubectl() -> Iterator[Kubectl]:
    """A fresh namespace on the cluster, watched by an operator installed from the chart."""
    kubeconfig = Path(os.environ.get("KUBECONFIG", cache() / "kubeconfig"))
    assert kubeconfig.exists(), "no cluster: run make cluster-up"
    binary = cache() / "bin" / "kubectl"
    found = binary if binary.exists() else Path(shutil.which("kubectl") or "kubectl")
    user_kubectl = Kubectl(found, kubeconfig, NAMESPACE)
    user_kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=300)
    subprocess.run([ROOT / "dev" / "install.sh", NAMESPACE], check=True, timeout=600)
    yield user_kubectl
    user_kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="session")
def system(kubectl: Kubectl) -> Kubectl:
    """The operator's own namespace."""
    return Kubectl(kubectl.binary, kubectl.kubeconfig, SYSTEM)


@pytest.fixture(scope="session")
def gateway(kubectl: Kubectl) -> Iterator[Gateway]:
    """A port-forward to the gateway's Service and a token of a user with the example role."""
    kubectl.apply(*user())
    token = kubectl(
        "create", "token", "e2e-user", "--audience=espalier-gateway", "--duration=2h"
    ).strip()
    process = subprocess.Popen(
        [
            kubectl.binary,
            f"--kubeconfig={kubectl.kubeconfig}",
            f"--namespace={SYSTEM}",
            "port-forward",
            "service/espalier-gateway",
            ":80",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    port = line.split("127.0.0.1:")[1].split()[0]
    yield Gateway(f"http://127.0.0.1:{port}", token)
    process.terminate()
    process.wait(timeout=60)


@pytest.fixture(scope="session")
def tiny(kubectl: Kubectl, images: dict[str, str]) -> str:
    """A model that serves its base."""
    kubectl.apply(claim(), model("tiny", images["tiny-model"]))
    until_ready(kubectl, "tiny")
    return "tiny"


@pytest.fixture(scope="session")
def prometheus(kubectl: Kubectl, tiny: str) -> Iterator[Prometheus]:
    """One in the cluster, from before the run on: a runner's metrics go with its pod."""
    cluster = InCluster(kubectl.kubeconfig)
    cluster.up()
    with cluster.forwarded() as found:
        yield found
    cluster.down()


@pytest.fixture(scope="session")
def trained(
    kubectl: Kubectl, system: Kubectl, tiny: str, gateway: Gateway, prometheus: Prometheus
) -> str:
    """A run of 12 steps in the course of which each part dies once."""
    kubectl.apply(tasks(), run("digits", tiny, STEPS))

    def reached(step: int) -> Callable[[], bool]:
        return lambda: kubectl.get("trainingrun", "digits")["status"]["step"] >= step

    parts = [
        (2, lambda: kill(system, "app.kubernetes.io/component=operator")),
        (4, lambda: kill(kubectl, "espalier.dev/role=trainer")),
        (6, lambda: kill(kubectl, "espalier.dev/role=rollout")),
        (8, lambda: kill(kubectl, "espalier.dev/role=runner")),
    ]
    for step, die in parts:
        kubectl.wait(f"step {step} of run digits", reached(step), timeout=300, show=SHOW)
        die()
    kubectl.wait(
        "run digits to succeed",
        lambda: is_true(kubectl.get("trainingrun", "digits"), "Succeeded"),
        timeout=600,
        show=SHOW,
    )
    return "digits"
