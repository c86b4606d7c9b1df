"""What the operator and the gateway ask a rollout pod."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from espalier.api.wire.base import Wire

# Where a sampler answers with the rollouts that are kept of a checkpoint's step.
KEPT_ROLLOUTS = "/espalier/v1/rollouts"


class ServeRequest(Wire):
    """The adapters that a rollout pod must have loaded to be ready; none means the base alone."""

    adapters: Annotated[list[str], Field(fail_fast=True)]


class Served(Wire):
    """What a rollout pod has loaded and verified, by adapter name.

    ``base``: whether the base is served too. Full weights take its place.
    """

    adapters: Annotated[list[str], Field(fail_fast=True)]
    ready: bool
    base: bool = True
