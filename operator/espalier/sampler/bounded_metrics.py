"""Keeps vLLM's metrics to as many series as there are metrics, whatever adapters are served.

``vllm:lora_requests_info`` has the names of the adapters as labels: every combination that was ever
in flight would be a series for as long as the process lives.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY
from vllm.v1.metrics import loggers


class BoundedStatLogger(loggers.PrometheusStatLogger):  # type: ignore[misc]
    """vLLM's metrics without that one."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.gauge_lora_info: Any
        if self.gauge_lora_info is not None:
            REGISTRY.unregister(self.gauge_lora_info)
            self.gauge_lora_info = None


def install() -> None:
    """Call it before the engine is made, in the process that serves /metrics."""
    loggers.PrometheusStatLogger = BoundedStatLogger
