"""The cluster as the gateway sees it: models, heads, pods, and where a name leads."""
