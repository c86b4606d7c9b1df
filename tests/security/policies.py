"""Whether NetworkPolicies let one pod reach another, by the rules of networking.k8s.io/v1.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class End:
    """A pod, or with no namespace an address outside of the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def reaches(policies: Iterable[Policy], source: End, target: End, port: int) -> bool:
    """Whether a TCP connection from one end to a port of the other is let through by both."""
    listed = [*policies]
    return _open(listed, "Egress", source, target, port) and _open(
        listed, "Ingress", target, source, port
    )


def _open(policies: list[Policy], direction: str, pod: End, peer: End, port: int) -> bool:
    of_pod = [p for p in policies if pod.namespace and _selects(p, pod, direction)]
    if not of_pod:
        return True
    rules, ends = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return any(
        _has_port(rule, port) and _has_peer(rule.get(ends), peer, policy["metadata"]["namespace"])
        for policy in of_pod
        for rule in policy["spec"].get(rules) or ()
    )


def _selects(policy: Policy, pod: End, direction: str) -> bool:
    return (
        policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _matches(policy["spec"]["podSelector"], pod.labels)
    )


def _has_port(rule: Policy, port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(p["protocol"] == "TCP" and p["port"] == port for p in ports)


def _has_peer(peers: list[Policy] | None, end: End, home: str) -> bool:
    if not peers:
        return True
    return any(_is(peer, end, home) for peer in peers)


def _is(peer: Policy, end: End, home: str) -> bool:
    if not end.namespace:
        return "ipBlock" in peer
    name = {"kubernetes.io/metadata.name": end.namespace}
    in_namespace = (
        _matches(peer["namespaceSelector"], name)
        if "namespaceSelector" in peer
        else "podSelector" in peer and end.namespace == home
    )
    return in_namespace and _matches(peer.get("podSelector", {}), end.labels)


def _matches(selector: Policy, labels: Mapping[str, str]) -> bool:
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ())
    )
