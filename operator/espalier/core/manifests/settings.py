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
    """Images, the keys that pods verify tokens with, and where the gateway is.

    ``public_keys`` is what ``identity.PublicKeys.text`` writes.
    """

    images: Images
    public_keys: str
    gateway_url: str
    runner_service_account: str = "espalier-runner"
