"""The edge to Kubernetes: cluster port, cache, informer, work queue, lease, events, health."""
