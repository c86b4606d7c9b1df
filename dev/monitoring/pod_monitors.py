"""Prometheus' configuration of our PodMonitors, as the Prometheus Operator makes it.

https://github.com/prometheus-operator/prometheus-operator/blob/main/pkg/prometheus/promcfg.go
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Config = dict[str, Any]
# What the Operator does for every PodMonitor: pods that ended are left out, and a series says
# where it is from.
_ENDED = {
    "source_labels": ["__meta_kubernetes_pod_phase"],
    "regex": "(Failed|Succeeded)",
    "action": "drop",
}
_FROM = [
    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
    {"source_labels": ["__meta_kubernetes_pod_container_name"], "target_label": "container"},
    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
]
KINDS = ("PodMonitor", "PrometheusRule")
KNOWN = tuple(f"monitoring.coreos.com/v1/{kind}" for kind in KINDS)


def scrape_configs(
    monitors: Iterable[Mapping[str, Any]],
    authorization: Config,
    discovery: Config,
    interval: str = "1s",
) -> Iterator[Config]:
    """One scrape config for each endpoint.

    ``authorization`` stands for the Secret's token; ``discovery`` says how pods are found.
    """
    for monitor in monitors:
        spec, home = monitor["spec"], monitor["metadata"]["namespace"]
        namespaces = spec.get("namespaceSelector", {}).get("matchNames", [home])
        for number, endpoint in enumerate(spec["podMetricsEndpoints"]):
            yield {
                "job_name": f"{home}/{monitor['metadata']['name']}/{number}",
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "metrics_path": endpoint.get("path", "/metrics"),
                "sample_limit": spec.get("sampleLimit", 0),
                "relabel_configs": [
                    _ENDED,
                    *_selected(spec["selector"]),
                    _kept("namespace", "|".join(namespaces)),
                    _kept("pod_container_port_name", endpoint["port"]),
                    *_FROM,
                    *map(_snake, endpoint.get("relabelings", ())),
                ],
                **({"authorization": authorization} if "authorization" in endpoint else {}),
                **discovery,
            }


def _selected(selector: Mapping[str, Any]) -> Iterator[Config]:
    for name, value in selector.get("matchLabels", {}).items():
        yield _kept(f"pod_label_{_label(name)}", value)
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        yield _kept(f"pod_label_{_label(rule['key'])}", "|".join(rule["values"]))


def _kept(meta: str, values: str) -> Config:
    return {"source_labels": [f"__meta_kubernetes_{meta}"], "regex": values, "action": "keep"}


def _label(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _snake(relabeling: Mapping[str, Any]) -> Config:
    return {re.sub(r"([A-Z])", r"_\1", name).lower(): v for name, v in relabeling.items()}
