"""What every child needs to know of this installation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """Image references by role; the importer runs in the trainer's."""

    trainer: str
    rollout: str
    runner: str


@dataclass(frozen=True)
class ChildSettings:
    """Images, the public key (PEM) that pods verify tokens with, and where the gateway is."""

    images: Images
    public_key: str
    gateway_url: str
    runner_service_account: str = "espalier-runner"
