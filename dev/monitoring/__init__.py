"""A Prometheus that reads what the chart's PodMonitors say, on this machine or in a cluster."""
