"""One reconciler per kind: observe, decide by core, act, write status."""
