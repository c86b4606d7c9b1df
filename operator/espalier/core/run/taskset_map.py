"""Faults of the ConfigMap of a run's tasks that show without reading the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.api.run.taskset import ConfigMapTasks

SHOWN_KEYS = 8


def missing(named: ConfigMapTasks, config_map: Mapping[str, Any] | None) -> str:
    """What is not there of a ConfigMap (None: itself) and its key; empty if all is."""
    if config_map is None:
        return f"spec.taskset.configMap.name: ConfigMap {named.name} does not exist: create it"
    keys = sorted({**(config_map.get("data") or {}), **(config_map.get("binaryData") or {})})
    if named.key in keys:
        return ""
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    there = f"it has {', '.join(keys[:SHOWN_KEYS])}{more}" if keys else "it is empty"
    return f"spec.taskset.configMap.key: ConfigMap {named.name} has no key {named.key}: {there}"
