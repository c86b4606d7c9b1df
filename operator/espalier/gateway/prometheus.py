"""Metrics of the gateway. ``route`` is the route's template, so that series stay few."""

from __future__ import annotations

import re

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
    "Requests that were refused, by the reason of the answer (see errors), those that are no HTTP "
    "(HttpMalformed), and connections over the most of their address (TooManyConnections).",
    ["reason"],
)
POD_FAULTS = Counter(
    "espalier_gateway_pod_faults",
    "Answers of pods that were not used: redirects, compressed, too large or unknown, by reason.",
    ["reason"],
)

_REASON = re.compile(r"[A-Za-z]{1,64}")


class PodReasons:
    """Reasons of pods as labels. A pod may give any word: each would be a series."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, reason: str) -> str:
        """The reason; ``other`` for what is no word, or beyond the most."""
        if reason not in self._known:
            if len(self._known) >= self._most or not _REASON.fullmatch(reason):
                return "other"
            self._known.add(reason)
        return reason


POD_REASONS = PodReasons()
