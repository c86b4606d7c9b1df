"""Tinker's wire, as gateway and trainer speak it: messages, bodies, names. Pure."""
