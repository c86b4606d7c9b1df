"""Manifests of the children: pure functions from API types and settings to complete intents."""
