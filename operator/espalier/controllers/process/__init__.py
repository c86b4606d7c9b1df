"""The operator's process: settings, leadership, preflight, the queue."""
