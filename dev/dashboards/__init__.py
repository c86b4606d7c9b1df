"""Grafana's dashboards: what they show, and their JSON in the chart."""
