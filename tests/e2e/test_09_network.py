"""Who reaches whom on the cluster: each line of the table in docs/operations/security.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import pytest
from tests.e2e.conftest import NAMESPACE
from tests.e2e.kubectl import Kubectl, KubectlError, Object
from tests.e2e.manifests import client_run
from tests.e2e.reach import End, listener, start

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ELSEWHERE, MONITORING = f"{NAMESPACE}-elsewhere", "monitoring"
Case = tuple[str, str, int]
# From, to, port. Pods without credentials: anybody's is in another namespace, beside in ours.
OPEN: list[Case] = [
    *((who, pod, 8000) for who in ("operator", "gateway") for pod in ("trainer", "sampler")),
    *((who, to, 443) for who in ("operator", "gateway", "importer") for to in ("anybody", "api")),
    *((who, "dns", 53) for who in ("operator", "gateway", "runner", "importer")),
    *((who, "gateway", 8000) for who in ("runner", "anybody", "beside", "prometheus")),
    *(("prometheus", part, 8080) for part in ("operator", "gateway", "runner")),
    *(("prometheus", pod, 8000) for pod in ("trainer", "sampler")),
    ("operator", "importer", 8000),
    ("runner", "beside", 9000),
]
SHUT: list[Case] = [
    *(
        (who, pod, 8000)
        for who in ("anybody", "beside", "runner", "importer", "collector")
        for pod in ("trainer", "sampler")
    ),
    *((who, part, 8080) for who in ("anybody", "beside") for part in ("operator", "gateway")),
    *((who, "runner", 8080) for who in ("anybody", "beside", "trainer")),
    *((pod, "anybody", 443) for pod in ("trainer", "sampler", "runner", "collector")),
    *((pod, "dns", 53) for pod in ("trainer", "sampler", "collector")),
    *((pod, "gateway", 8000) for pod in ("trainer", "sampler", "importer", "collector")),
    *((who, "anybody", 80) for who in ("operator", "gateway", "importer")),
    *((who, pod, 8000) for who in ("beside", "gateway") for pod in ("importer", "collector")),
    ("trainer", "sampler", 8000),
    ("sampler", "trainer", 8000),
    ("anybody", "importer", 8000),
    ("operator", "collector", 8000),
    ("gateway", "beside", 8000),
    ("importer", "beside", 8000),
    ("collector", "beside", 9000),
    ("runner", "anybody", 9000),
    ("prometheus", "runner", 8000),
    ("prometheus", "importer", 8000),
]


@dataclass(frozen=True)
class Parts:
    """One pod of each part, and the addresses that no pod of ours has."""

    ends: dict[str, End]
    services: dict[str, str]

    def tried(self, cases: list[Case]) -> dict[Case, str]:
        """What comes of each connection."""
        known = {name: end.address() for name, end in self.ends.items()} | self.services
        by_source = [[case for case in cases if case[0] == name] for name in self.ends]

        def of_one(ours: list[Case]) -> list[str]:
            targets = [(known[to], port) for _, to, port in ours]
            return self.ends[ours[0][0]].connects(targets) if ours else []

        with ThreadPoolExecutor(len(self.ends)) as pool:
            answers = [*pool.map(of_one, by_source)]
        return dict(zip(chain(*by_source), chain(*answers), strict=True))


@pytest.fixture(scope="module")
def parts(kubectl: Kubectl, system: Kubectl, tiny: str, images: dict[str, str]) -> Iterator[Parts]:
    """Operator, gateway, trainer and sampler as they run, and probes in the place of the others."""
    kubectl.apply(client_run("network", tiny, 1))  # A model that nobody trains has no trainer.
    image = images["operator"]
    roles = {"beside": "", "runner": "runner", "importer": "importer", "collector": "collector"}
    probes = [listener(f"probe-{name}", image, role) for name, role in roles.items()]
    others = {"anybody": ELSEWHERE, "prometheus": MONITORING}
    ends = dict(zip(roles, start(kubectl, *probes), strict=True))
    for name, namespace in others.items():
        in_it = replace(kubectl, namespace=namespace)
        in_it.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        # Its account may come later than the namespace, and no pod is made without it.
        in_it.wait("its account", lambda at=in_it: at.find("serviceaccount", "default"))
        (ends[name],) = start(in_it, listener(f"probe-{name}", image))
    for name, role in (("trainer", "trainer"), ("sampler", "rollout")):
        labels = f"espalier.dev/model={tiny},espalier.dev/role={role}"
        ends[name] = End(kubectl, ready(kubectl, labels))
    for name in ("operator", "gateway"):
        ends[name] = End(system, ready(system, f"app.kubernetes.io/component={name}"))
    in_kube = replace(kubectl, namespace="kube-system")
    services = {
        "api": replace(kubectl, namespace="default").get("service", "kubernetes"),
        "dns": in_kube.get("service", "kube-dns"),
    }
    yield Parts(ends, {name: body["spec"]["clusterIP"] for name, body in services.items()})
    kubectl("delete", "trainingrun", "network", "--wait=true")
    for end in ends.values():
        if end.pod.startswith("probe-"):
            end.of("delete", "pod", end.pod, "--wait=false")
    kubectl("delete", "namespace", ELSEWHERE, "--wait=false")


def ready(kubectl: Kubectl, selector: str) -> str:
    """The name of a Ready pod with these labels."""

    def found() -> str:
        pods = kubectl.list("pods", selector)
        return next(
            (
                str(pod["metadata"]["name"])
                for pod in pods
                if "deletionTimestamp" not in pod["metadata"]
                and any(
                    one["type"] == "Ready" and one["status"] == "True"
                    for one in pod["status"].get("conditions", [])
                )
            ),
            "",
        )

    name: str = kubectl.wait(f"a Ready pod of {selector}", found, timeout=180, show=["pods"])
    return name


@contextmanager
def without_policies(*namespaces: Kubectl) -> Iterator[None]:
    """Deletes the network policies of the chart, and makes them again as they were."""
    kept = {at: at.list("networkpolicies", "app.kubernetes.io/name=espalier") for at in namespaces}
    assert all(kept.values()), "the chart has made no policy: is networkPolicy.enabled false?"
    try:
        for at, policies in kept.items():
            at("delete", "networkpolicy", *(one["metadata"]["name"] for one in policies))
        yield
    finally:
        for at, policies in kept.items():
            items = {"apiVersion": "v1", "kind": "List", "items": [*map(as_made, policies)]}
            at("create", "-f", "-", stdin=json.dumps(items))


def as_made(policy: Object) -> Object:
    """An object without what the API server adds to it."""
    kept = ("name", "namespace", "labels", "annotations")
    metadata = {field: policy["metadata"][field] for field in kept if field in policy["metadata"]}
    return {**policy, "metadata": metadata}


def differing(found: dict[Case, str], wanted: set[str]) -> list[str]:
    return sorted(
        f"{who} to {to}:{port} is {what}"
        for (who, to, port), what in found.items()
        if what not in wanted
    )


def test_every_connection_that_a_part_needs_is_open(parts: Parts) -> None:
    assert differing(parts.tried(OPEN), {"open"}) == []


def test_every_other_connection_is_stopped(parts: Parts) -> None:
    # Dropped by most network plug-ins, refused by some.
    found = parts.tried(SHUT)
    nothing = "the network plug-in of this cluster enforces no policy: docs/operations/security.md"
    assert {*found.values()} != {"open"}, nothing
    assert differing(found, {"timed out", "refused"}) == []


def test_without_the_policies_the_same_connections_are_open(
    parts: Parts, kubectl: Kubectl, system: Kubectl
) -> None:
    def same() -> bool:
        found = differing(parts.tried(SHUT), {"open"})
        if found:
            raise KubectlError(f"not open without a policy: {found}")
        return True

    def stopped() -> bool:
        found = differing(parts.tried(SHUT), {"timed out", "refused"})
        if found:
            raise KubectlError(f"open though the policies are there again: {found}")
        return True

    with without_policies(kubectl, system):
        kubectl.wait("every connection to be open without policies", same)
    kubectl.wait("the policies to be in force again", stopped)
