"""The three dashboards."""

from __future__ import annotations

from dev.dashboards.fleet_board import FLEET
from dev.dashboards.gateway_board import GATEWAY
from dev.dashboards.model_board import MODEL

DASHBOARDS = (FLEET, MODEL, GATEWAY)
