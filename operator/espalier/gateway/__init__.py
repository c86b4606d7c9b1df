"""The gateway: one address for sampling and training every model of the served namespaces."""
