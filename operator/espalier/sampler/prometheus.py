"""Metrics of the sampler beside vLLM's own. Its pod says of which model they are."""

from __future__ import annotations

from prometheus_client import Counter

REFUSALS = Counter(
    "espalier_sampler_refusals",
    "Requests and probes that were refused before vLLM saw them, by the reason of the answer (see "
    "errors).",
    ["reason"],
)
