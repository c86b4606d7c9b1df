"""Metrics of the gateway. ``route`` is the route's template, so that series stay few."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS = Counter(
    "espalier_gateway_requests",
    "Requests by route, method and status; 499 is a client that went away. A method that HTTP does "
    "not define is other.",
    ["route", "method", "status"],
)
DURATION = Histogram(
    "espalier_gateway_request_duration_seconds",
    "Time from the request to the end of its answer.",
    ["route"],
    buckets=_BUCKETS,
)
UPSTREAM = Histogram(
    "espalier_gateway_upstream_duration_seconds",
    "The part of it that trainer or rollout took.",
    ["route"],
    buckets=_BUCKETS,
)
RETRIES = Counter(
    "espalier_gateway_upstream_retries", "Completions sent again after a lost connection."
)
REFUSED = Counter(
    "espalier_gateway_refused_requests",
    "Requests refused for their form or size or over a quota of their caller, and connections over "
    "the most of their address (TooManyConnections), by reason.",
    ["reason"],
)
POD_FAULTS = Counter(
    "espalier_gateway_pod_faults",
    "Answers of pods that were not used: redirects, compressed, too large or unknown, by reason.",
    ["reason"],
)
