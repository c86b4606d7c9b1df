"""Decisions about a TrainableModel."""
