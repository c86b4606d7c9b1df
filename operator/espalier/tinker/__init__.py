"""Tinker's wire, as gateway and trainer share it: messages, bodies, results. Pure."""
