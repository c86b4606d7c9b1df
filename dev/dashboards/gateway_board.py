"""The dashboard of the gateway: how many requests, how long, and what is refused."""

from __future__ import annotations

from dev.dashboards.panels import Dashboard, Row
from dev.dashboards.queries import RATE, graph, quantile, rate, stack

GATEWAY = Dashboard(
    "gateway",
    "Espalier / Gateway",
    "Requests of all clients: how many, how long, and what is refused.",
    (),
    (
        Row(
            "Requests",
            (
                stack(
                    "Requests a second by route",
                    "reqps",
                    rate("espalier_gateway_requests_total", "route"),
                    "{{route}}",
                ),
                stack(
                    "Requests a second by status",
                    "reqps",
                    rate("espalier_gateway_requests_total", "status"),
                    "{{status}}",
                ),
                graph(
                    "Share of faults",
                    "percentunit",
                    (
                        "("
                        + rate('espalier_gateway_requests_total{status=~"5.."}')
                        + " or vector(0)) / "
                        + rate("espalier_gateway_requests_total"),
                        "5xx",
                    ),
                ),
            ),
        ),
        Row(
            "Time",
            (
                graph(
                    "Half of the answers by route",
                    "s",
                    (
                        quantile(0.5, "espalier_gateway_request_duration_seconds", "route"),
                        "{{route}}",
                    ),
                ),
                graph(
                    "99 of 100 answers by route",
                    "s",
                    (
                        quantile(0.99, "espalier_gateway_request_duration_seconds", "route"),
                        "{{route}}",
                    ),
                ),
                graph(
                    "What the gateway adds to trainer or sampler",
                    "s",
                    (
                        "("
                        + rate("espalier_gateway_request_duration_seconds_sum", "route")
                        + " - "
                        + rate("espalier_gateway_upstream_duration_seconds_sum", "route")
                        + ") / "
                        + rate("espalier_gateway_upstream_duration_seconds_count", "route"),
                        "{{route}}",
                    ),
                    meaning="The mean. optim_step waits in the gateway until the head serves.",
                ),
            ),
        ),
        Row(
            "Refusals, and the process",
            (
                graph(
                    "Refused requests, and faults of pods",
                    "ops",
                    (
                        rate("espalier_gateway_refused_requests_total", "reason"),
                        "refused: {{reason}}",
                    ),
                    (rate("espalier_gateway_pod_faults_total", "reason"), "pod: {{reason}}"),
                    (rate("espalier_gateway_upstream_retries_total"), "sent again"),
                ),
                graph(
                    "Cores",
                    "none",
                    (
                        'rate(process_cpu_seconds_total{job="espalier-gateway"}' + RATE + ")",
                        "{{pod}}",
                    ),
                ),
                graph(
                    "Memory",
                    "bytes",
                    ('process_resident_memory_bytes{job="espalier-gateway"}', "{{pod}}"),
                ),
            ),
        ),
    ),
)
