"""How many optimizer steps a run takes with what it sampled at once."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Type


class Batch(Type):
    """The use of a batch, which is what is sampled from one checkpoint before the next is asked."""

    minibatches: int = Field(
        default=1,
        ge=1,
        le=64,
        description="minibatches that a batch is cut into, of groupsPerStep groups each: every one "
        "is an optimizer step with a checkpoint of its own, and a batch has groupsPerStep * "
        "minibatches groups, fewer where groupFilter leaves some out.",
    )
    epochs: int = Field(
        default=1,
        ge=1,
        le=16,
        description="epochs over a batch. Each epoch after the first deals its groups out to the "
        "minibatches anew, drawn from seed and step; a group stays whole. "
        "Choose a loss that clips, such as ppo, above one step a batch, and see loss.ratioAnchor.",
    )

    @property
    def steps(self) -> int:
        """Optimizer steps of a batch."""
        return self.minibatches * self.epochs
