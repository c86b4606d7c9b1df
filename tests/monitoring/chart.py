"""The chart where the Prometheus Operator is installed."""

from __future__ import annotations

from dev.monitoring.pod_monitors import KNOWN
from tests.api.test_chart import VALUES, render


def rendered(*values: str) -> str:
    return render(*VALUES, *values, known=KNOWN)
