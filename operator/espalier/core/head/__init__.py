"""Decisions about a CheckpointHead."""
