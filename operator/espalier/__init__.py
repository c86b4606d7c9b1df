"""Espalier: a GitOps training operator for reinforcement learning of language models."""
