"""Decisions about Checkpoints: which are made, kept, and deleted."""
