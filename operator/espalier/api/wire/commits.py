"""Committed optimizer steps, as the operator turns them into Checkpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from espalier.api.wire.base import Wire
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import TasksetUsed


class Tokens(Wire):
    """Tokens of the completions that were sampled, and of those that losses ran over."""

    sampled: int = Field(default=0, ge=0)
    trained: int = Field(default=0, ge=0)


class Commit(Wire):
    """One committed optimizer step, as the operator turns it into a Checkpoint.

    ``run_tokens`` are those of its run up to it, over all branches. ``stored``: whether its bytes
    were on the volume when the trainer last started. ``measured``: figures of checkpoints that are
    there already, by name, which came with the step.
    """

    index: int = Field(ge=1)
    name: str
    model: str
    run: str
    step: int = Field(ge=1)
    run_step: int = Field(ge=1)
    branch: str
    term: int
    parent: str
    parent_name: str
    digest: str
    size_bytes: int
    lora_rank: int
    learning_rate: float
    group_size: int
    loss: str
    metrics: dict[str, float]
    measured: dict[str, dict[str, float]] = Field(default_factory=dict)
    created: str
    run_tokens: Tokens = Field(default_factory=Tokens)
    taskset: TasksetUsed | None = None
    stored: bool = True


class CommitPage(Wire):
    """Commits after a given index, oldest first.

    ``problem`` holds training up; ``warnings`` say how it runs, and hold nothing up.
    """

    commits: Annotated[list[Commit], Field(fail_fast=True)]
    problem: Problem | None = None
    warnings: Annotated[list[Problem], Field(fail_fast=True)] = Field(default_factory=list)
