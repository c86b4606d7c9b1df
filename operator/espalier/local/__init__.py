"""Espalier on one machine: the operator, the gateway and what they start, as plain processes."""
