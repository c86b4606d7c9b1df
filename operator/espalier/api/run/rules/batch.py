"""Rules of a batch: what needs all of it, and how stale its last step is."""

from __future__ import annotations

from espalier.api.meta import Rule

_STEPS_OF_BATCH = "(has(self.batch) ? self.batch.minibatches * self.batch.epochs : 1)"

BATCH: tuple[Rule, ...] = (
    (
        "!has(self.advantage) || !has(self.advantage.scale)"
        " || self.advantage.scale != 'BatchStd' || !has(self.schedule)"
        " || !has(self.schedule.mode) || self.schedule.mode != 'Streaming'",
        "advantage.scale BatchStd needs all rewards of a step at once, and schedule.mode "
        "Streaming adds gradients before they are there: choose GroupStd or Synchronous",
        ".advantage",
    ),
    (
        f"{_STEPS_OF_BATCH} == 1 || !has(self.schedule) || self.schedule.mode != 'Streaming'",
        "batch takes several steps with groups that are all there, and schedule.mode "
        "Streaming adds gradients before they are: remove batch, or choose another mode",
        ".batch",
    ),
    (
        f"{_STEPS_OF_BATCH} == 1 || !has(self.schedule)"
        " || !has(self.schedule.maxStalenessSteps)"
        f" || self.schedule.maxStalenessSteps >= {_STEPS_OF_BATCH} - 1",
        "the last of batch.minibatches * batch.epochs steps is staler than "
        "schedule.maxStalenessSteps: raise that, or take fewer steps with a batch",
        ".batch",
    ),
    (
        "!has(self.batch) || self.batch.minibatches == 1 || !has(self.advantage)"
        " || self.advantage.scale != 'BatchStd'",
        "advantage.scale BatchStd needs all rewards of a batch at once, and each of "
        "batch.minibatches is sent by itself: choose GroupStd, or use epochs alone",
        ".batch",
    ),
    (
        "!has(self.batch) || self.batch.minibatches"
        " * (has(self.groupsPerStep) ? self.groupsPerStep : 8) <= 4096",
        "groupsPerStep * batch.minibatches, the groups of a batch, must not be above 4096",
        ".batch",
    ),
)
