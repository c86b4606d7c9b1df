"""Decisions about a TrainingRun."""
