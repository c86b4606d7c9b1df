"""Tinker's API: its sessions, models, futures, samplers and paths, mapped to our objects."""
