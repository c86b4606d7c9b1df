"""The checkpoint tree of a model."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Type, list_map


class Branch(Type):
    """One branch of the checkpoint tree: inside it steps are a line."""

    name: str = Field(description="name of the branch: main, or b<term>.", max_length=32)
    base: str = Field(
        default="", description="base is the Checkpoint that the branch grows from.", max_length=63
    )
    first_step: int = Field(default=0, ge=0, description="firstStep on the branch.")
    last_step: int = Field(default=0, ge=0, description="lastStep on the branch.")
    tip: str = Field(default="", description="tip is the newest Checkpoint.", max_length=63)
    best_reward: str | None = Field(
        default=None,
        description="bestReward is the highest reward/mean measured on it.",
        max_length=32,
    )
    head: bool | None = Field(default=None, description="head is true where the model's head is.")
    superseded: bool | None = Field(
        default=None, description="superseded is true when training went on elsewhere."
    )


class Tree(Type):
    """The checkpoint tree, lossless: every branch by its base and its range of steps."""

    checkpoints: int = Field(default=0, ge=0, description="checkpoints in the tree.")
    branches: list[Branch] = Field(
        default_factory=list,
        description="branches of the tree.",
        max_length=256,
        json_schema_extra=list_map("name"),
    )
