"""Whom a trainer works for, and where it stands."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from espalier.api.meta import OptimizerState
from espalier.api.wire.base import Wire
from espalier.api.wire.problem import Problem


class Assignment(Wire):
    """Who trains what from where: starts a trainer and re-bases a running one. Idempotent.

    A term above the trainer's re-bases it on ``base`` (empty: a fresh adapter), dropping
    accumulated gradients and, with ``optimizer_state`` Reset, Adam's moments of ``base``; the same
    term keeps its position; a lower term is refused (409).
    """

    term: int = Field(ge=1)
    branch: str
    base: str = ""
    base_name: str = ""
    base_step: int = Field(default=0, ge=0)
    optimizer_state: OptimizerState = "Keep"
    run: str


class TrainerState(Wire):
    """Where the trainer stands: what a runner resumes from."""

    model: str
    run: str
    term: int
    branch: str
    step: int
    run_step: int
    digest: str
    checkpoint: str
    pending: int
    cursor: dict[str, Any]
    problem: Problem | None = None
    warnings: Annotated[list[Problem], Field(fail_fast=True)] = Field(default_factory=list)


class Usage(Wire):
    """Seconds since the trainer's last call ended; 0 while one is under way."""

    quiet_seconds: float = Field(ge=0)
