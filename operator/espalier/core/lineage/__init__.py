"""The lineage of a model's checkpoints, and what was measured of each."""
