"""The operator: one reconciler per kind observes, decides by core, acts and writes status."""
